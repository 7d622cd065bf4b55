"""How is every word of the lexicon inflected?

Reads the tables of `lexicon` into words that carry all their forms: nouns by case and number,
verbs by person and tense, determiners and adjectives by the endings they give and take.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from tfx.data import lexicon

CASES = ("nominative", "accusative", "dative", "genitive")
GENDERS = ("masculine", "feminine", "neuter", "plural")  # the plural inflects like a gender
PERSONS = ("ich", "du", "er", "wir", "sie")  # what a verb agrees with; nobody says ihr here
ARTICLES = {"der": "masculine", "die": "feminine", "das": "neuter"}


@dataclass(frozen=True, eq=False)
class Noun:
    kind: str
    singular: str
    plural: str
    gender: str
    german: dict[tuple[str, bool], str]  # (case, plural?) -> form


@dataclass(frozen=True, eq=False)
class Adjective:
    english: str
    english_comparative: str  # "-": none
    german: str
    german_comparative: str
    kinds: list[str]
    stem: str  # what an ending is put on


@dataclass(frozen=True, eq=False)
class Determiner:
    english: str
    stem: str
    endings: dict[tuple[str, str], str]  # (case, gender) -> ending
    adjective: dict[tuple[str, str], str]


@dataclass(frozen=True, eq=False)
class Complement:
    preposition: str  # German; "": a plain object
    case: str
    kinds: list[str]


@dataclass(frozen=True, eq=False)
class Verb:
    base: str  # English, particle or preposition included: look for
    third: str
    past: str
    participle: str
    gerund: str
    infinitive: str  # German, prefix included: aufstehen
    zu: str  # zu schlafen, aufzustehen
    prefix: str  # what separates: auf
    present: dict[str, str]  # person -> form, prefix left out
    preterite: dict[str, str]
    partizip: str
    auxiliary: str  # habe | bin
    subjects: list[str]
    complements: list[Complement]


@dataclass(frozen=True, eq=False)
class Pronoun:
    forms: tuple[str, str]  # English: subject, object
    cases: dict[str, str]
    agreement: str
    kind: str = "person"
    indefinite = False

    def english(self, case: str = "nominative") -> str:
        return self.forms[case != "nominative"]

    def german(self, case: str = "nominative") -> str:
        return self.cases[case]


@dataclass(frozen=True, eq=False)
class Name:
    source: str
    target: str
    kind: str  # person | city
    gender: str = "neuter"
    agreement: str = "er"
    indefinite = False

    def english(self, case: str = "nominative") -> str:
        return self.source

    def german(self, case: str = "nominative") -> str:
        return self.target


def rows(table: str) -> Iterator[list[list[str]]]:
    """The lines of a table as lists of cells, one list for each side of `=`."""
    for line in table.strip().splitlines():
        yield [side.strip().split(", ") for side in line.split(" = ")]


def decline(singular: str, genitive: str, plural: str) -> dict[tuple[str, bool], str]:
    """All forms of a German noun, from the three that a dictionary gives."""
    ending = genitive.removeprefix("-")
    oblique = singular + ending if ending in ("n", "en") else singular
    forms = {(case, False): oblique for case in CASES} | {(case, True): plural for case in CASES}
    forms["nominative", False] = singular
    forms["genitive", False] = singular + ending
    if plural[-1] not in "ns":
        forms["dative", True] = plural + "n"
    return forms


def conjugate_present(infinitive: str, third: str) -> dict[str, str]:
    """The German present of a verb, from its infinitive and er-form."""
    stem = infinitive.removesuffix("en")
    if not third.endswith("t"):  # können, er kann: the ich-form is the er-form
        first = second = third
    else:
        first = stem + "e"
        # halten, er hält: du hältst keeps the t that warten, er wartet: du wartest loses
        second = third if stem.endswith("t") and not third.endswith("et") else third[:-1]
    second += "t" if second[-1] in "sßz" else "st"
    return dict(zip(PERSONS, (first, second, third, infinitive, infinitive), strict=True))


def conjugate_preterite(form: str) -> dict[str, str]:
    """The German preterite of a verb, from its ich-form."""
    if form.endswith("te"):  # weak: kaufte, brachte
        second, plural = form + "st", form + "n"
    else:  # strong: sah, fand, aß
        second, plural = form + ("est" if form[-1] in "tdsß" else "st"), form + "en"
    return dict(zip(PERSONS, (form, second, form, plural, plural), strict=True))


def third_person(base: str) -> str:
    """looks for, goes to, carries."""
    head, space, rest = base.partition(" ")
    if head.endswith("y") and head[-2] not in "aeou":
        head = head[:-1] + "ie"
    elif head.endswith(("s", "sh", "ch", "x", "o")):
        head += "e"
    return head + "s" + space + rest


def gerund(base: str) -> str:
    """looking for, running to, dancing."""
    head, space, rest = base.partition(" ")
    stem = head[:-1] if head.endswith("e") and not head.endswith("ee") else head
    return stem + (stem[-1] if head in DOUBLED else "") + "ing" + space + rest


def make_verb(english, german, subjects=(), complements=()) -> Verb:
    base, past, participle = english
    infinitive, third, preterite, perfect = german
    prefix, _, simple = infinitive.rpartition("|")
    auxiliary, partizip = perfect.split(" ")
    return Verb(
        base=base,
        third=third_person(base),
        past=past,
        participle=participle,
        gerund=gerund(base),
        infinitive=prefix + simple,
        zu=f"{prefix}zu{simple}" if prefix else f"zu {simple}",
        prefix=prefix,
        present=conjugate_present(simple, third),
        preterite=conjugate_preterite(preterite),
        partizip=partizip,
        auxiliary={"hat": "habe", "ist": "bin"}[auxiliary],
        subjects=subjects,
        complements=complements,
    )


def make_complement(text: str) -> Complement:
    """From "accusative thing food" or "auf accusative person"."""
    words = text.split()
    preposition = "" if words[0] in CASES else words.pop(0)
    return Complement(preposition, words[0], words[1:])


def read_verbs(table: str) -> list[Verb]:
    verbs = []
    for line in table.strip().splitlines():
        if line.strip().startswith("["):
            left, _, right = line.strip(" []").partition(":")
            frame = left.split(), [make_complement(part) for part in right.split(",") if part]
        else:
            ((english, german),) = rows(line)
            verbs.append(make_verb(english, german, *frame))
    return verbs


def make_adjective(english, german, kinds) -> Adjective:
    stem = german[0].removesuffix("e")  # müde, ein müder
    if stem.endswith("euer"):
        stem = stem[:-2] + "r"  # teuer, ein teurer
    return Adjective(*english, *german, kinds[0].split(), stem)


def make_pronoun(english, german) -> Pronoun:
    *forms, agreement = german
    return Pronoun(tuple(english), dict(zip(CASES[:3], forms, strict=True)), agreement)


def read_pronouns(table: str) -> dict[str, Pronoun]:
    return {key: make_pronoun(en, de) for en, de, keys in rows(table) for key in keys}


def read_endings(cells: list[str]) -> dict[tuple[str, str], str]:
    slots = [(case, gender) for gender in GENDERS for case in CASES]
    return dict(zip(slots, (cell.strip("-") for cell in cells), strict=True))


DOUBLED = lexicon.DOUBLED.split(", ")
IRREGULAR = {
    name: dict(zip(PERSONS, forms, strict=True)) for (name,), forms in rows(lexicon.IRREGULAR_TABLE)
}
NOUNS = {
    en[0]: Noun(kind, *en, ARTICLES[de[0][:3]], decline(de[0][4:], *de[1:]))
    for kind, table in lexicon.NOUN_TABLES.items()
    for en, de in rows(table)
}
ADJECTIVES = {row[0][0]: make_adjective(*row) for row in rows(lexicon.ADJECTIVE_TABLE)}
VERBS = {verb.base: verb for verb in read_verbs(lexicon.VERB_TABLE)}
SPEECH = {verb.base: verb for verb in read_verbs(lexicon.SPEECH_TABLE)}
CONTROL = {verb.base: verb for verb in read_verbs(lexicon.CONTROL_TABLE)}
TO_BE = replace(
    make_verb(["be", "was", "been"], ["sein", "ist", "war", "ist gewesen"]),
    present=IRREGULAR["bin"],
)
MODALS = {en: conjugate_present(*de) for (en,), de in rows(lexicon.MODAL_TABLE)}
MODALS["should"] = IRREGULAR["sollte"]
PRONOUNS = {en[0]: make_pronoun(en, de) for en, de in rows(lexicon.PRONOUN_TABLE)}
ANAPHORS = read_pronouns(lexicon.ANAPHOR_TABLE)  # "person masculine" -> he
RELATIVES = read_pronouns(lexicon.RELATIVE_TABLE)
NAMES = {en: Name(en, de, "person", gender) for (en,), (de, gender) in rows(lexicon.NAME_TABLE)}
CITIES = {en: Name(en, de, "city") for (en,), (de,) in rows(lexicon.CITY_TABLE)}
ENDINGS = {
    name: read_endings(cells)
    for name, *cells in map(str.split, lexicon.ENDING_TABLE.strip().splitlines())
}
DETERMINERS = {
    en: Determiner(en, de, ENDINGS[endings], ENDINGS[adjective])
    for (en,), (de, endings, adjective) in rows(lexicon.DETERMINER_TABLE)
}
UNINFLECTED = {"": ""} | {en: de for (en,), (de,) in rows(lexicon.NUMBER_TABLE)}
UNINFLECTED |= {f"{name.source}'s": f"{name.target}s" for name in NAMES.values()}
DETERMINERS |= {
    en: Determiner(en, de, ENDINGS["none"], ENDINGS["strong"]) for en, de in UNINFLECTED.items()
}
