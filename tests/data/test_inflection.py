"""Forms that a rule could get wrong, written out by hand from the dictionary."""

import pytest

from tfx.data.inflection import (
    ADJECTIVES,
    CASES,
    CONTROL,
    DETERMINERS,
    MODALS,
    NOUNS,
    SPEECH,
    TO_BE,
    VERBS,
    conjugate_present,
    decline,
    gerund,
    third_person,
)

PRESENT = """
    sleep: schlafe schläfst schläft schlafen
    wait: warte wartest wartet warten
    work: arbeite arbeitest arbeitet arbeiten
    answer: antworte antwortest antwortet antworten
    find: finde findest findet finden
    dance: tanze tanzt tanzt tanzen
    eat: esse isst isst essen
    forget: vergesse vergisst vergisst vergessen
    steal: stehle stiehlst stiehlt stehlen
    see: sehe siehst sieht sehen
    carry: trage trägst trägt tragen
    invite: lade lädst lädt laden
    help: helfe hilfst hilft helfen
    give: gebe gibst gibt geben
    meet: treffe triffst trifft treffen
    talk about: spreche sprichst spricht sprechen
    drive to: fahre fährst fährt fahren
    run away: laufe läufst läuft laufen
    trust: vertraue vertraust vertraut vertrauen"""
PRETERITE = """
    sleep: schlief schliefst schliefen
    wait: wartete wartetest warteten
    dance: tanzte tanztest tanzten
    bring: brachte brachtest brachten
    think of: dachte dachtest dachten
    find: fand fandest fanden
    understand: verstand verstandest verstanden
    invite: lud ludest luden
    eat: aß aßest aßen
    forget: vergaß vergaßest vergaßen
    see: sah sahst sahen
    lend: lieh liehst liehen
    go to: ging gingst gingen"""


def table(text):
    lines = [line.split(":") for line in text.strip().splitlines()]
    return [(name.strip(), forms.split()) for name, forms in lines]


@pytest.mark.parametrize("verb, forms", table(PRESENT))
def test_present(verb, forms):
    present = VERBS[verb].present
    assert [present[person] for person in ("ich", "du", "er", "wir")] == forms
    assert present["sie"] == present["wir"]


@pytest.mark.parametrize("verb, forms", table(PRETERITE))
def test_preterite(verb, forms):
    preterite = VERBS[verb].preterite
    assert [preterite[person] for person in ("ich", "du", "wir")] == forms
    assert (preterite["er"], preterite["sie"]) == (preterite["ich"], preterite["wir"])


def test_verbs_that_no_table_above_holds():
    assert list(SPEECH["know"].present.values()) == ["weiß", "weißt", "weiß", "wissen", "wissen"]
    assert list(TO_BE.present.values()) == ["bin", "bist", "ist", "sind", "sind"]
    assert list(TO_BE.preterite.values()) == ["war", "warst", "war", "waren", "waren"]
    assert list(MODALS["may"].values()) == ["darf", "darfst", "darf", "dürfen", "dürfen"]
    assert [MODALS[verb]["du"] for verb in ("can", "must", "want", "should")] == [
        "kannst",
        "musst",
        "willst",
        "solltest",
    ]
    assert CONTROL["promise"].present["du"] == "versprichst"
    assert CONTROL["decide"].present["du"] == "beschließt"
    assert conjugate_present("halten", "hält")["du"] == "hältst"


def test_separable_verbs():
    verb = VERBS["fall asleep"]
    assert (verb.prefix, verb.infinitive, verb.zu) == ("ein", "einschlafen", "einzuschlafen")
    assert (verb.partizip, verb.auxiliary) == ("eingeschlafen", "bin")
    assert VERBS["sleep"].zu == "zu schlafen"
    assert VERBS["get to know"].zu == "kennenzulernen"


@pytest.mark.parametrize(
    "base, third, ing",
    [
        ("look for", "looks for", "looking for"),
        ("go to", "goes to", "going to"),
        ("carry", "carries", "carrying"),
        ("buy", "buys", "buying"),
        ("see", "sees", "seeing"),
        ("chase", "chases", "chasing"),
        ("fetch", "fetches", "fetching"),
        ("run away", "runs away", "running away"),
        ("get up", "gets up", "getting up"),
        ("wait", "waits", "waiting"),
    ],
)
def test_english_verbs(base, third, ing):
    assert (third_person(base), gerund(base)) == (third, ing)


def test_nouns():
    singular = lambda forms: [forms[case, False] for case in CASES]
    plural = lambda forms: [forms[case, True] for case in CASES]
    assert singular(NOUNS["boy"].german) == ["Junge", "Jungen", "Jungen", "Jungen"]
    assert singular(NOUNS["bear"].german) == ["Bär", "Bären", "Bären", "Bären"]
    assert singular(NOUNS["man"].german) == ["Mann", "Mann", "Mann", "Mannes"]
    assert singular(NOUNS["woman"].german) == ["Frau"] * 4
    assert plural(NOUNS["man"].german) == ["Männer", "Männer", "Männern", "Männer"]
    assert plural(NOUNS["car"].german) == ["Autos"] * 4
    assert plural(NOUNS["woman"].german) == ["Frauen"] * 4
    assert plural(decline("Onkel", "-s", "Onkel")) == ["Onkel", "Onkel", "Onkeln", "Onkel"]


def test_determiners_and_adjectives():
    forms = lambda name, gender: [
        DETERMINERS[name].stem + DETERMINERS[name].endings[case, gender] for case in CASES
    ]
    assert forms("the", "masculine") == ["der", "den", "dem", "des"]
    assert forms("the", "feminine") == ["die", "die", "der", "der"]
    assert forms("the", "neuter") == ["das", "das", "dem", "des"]
    assert forms("the", "plural") == ["die", "die", "den", "der"]
    assert forms("a", "masculine") == ["ein", "einen", "einem", "eines"]
    assert forms("our", "feminine") == ["unsere", "unsere", "unserer", "unserer"]
    assert forms("every", "neuter") == ["jedes", "jedes", "jedem", "jedes"]
    assert forms("many", "plural") == ["viele", "viele", "vielen", "vieler"]
    stems = [ADJECTIVES[name].stem for name in ("tired", "expensive", "old")]
    assert stems == ["müd", "teur", "alt"]


def test_each_english_form_of_a_word_is_its_own():
    nouns = NOUNS.values()
    forms = [noun.singular for noun in nouns] + [noun.plural for noun in nouns]
    assert len(set(forms)) == len(forms)
    for verb in [*VERBS.values(), *SPEECH.values(), *CONTROL.values()]:
        assert len({verb.base, verb.third, verb.past, verb.gerund}) == 4, verb.base
