"""A tree and its two sentences, for each thing that the grammar can do."""

import pytest

from tfx.data.inflection import (
    ADJECTIVES,
    ANAPHORS,
    CITIES,
    CONTROL,
    DETERMINERS,
    NAMES,
    NOUNS,
    PRONOUNS,
    RELATIVES,
    SPEECH,
    TO_BE,
    VERBS,
)
from tfx.data.syntax import (
    WHO,
    Clause,
    Coordination,
    Existence,
    Fixed,
    Infinitive,
    NounPhrase,
    Place,
    Predicate,
    Question,
    Subordination,
    speak,
)

PLURALS = {noun.plural: noun for noun in NOUNS.values()}
YESTERDAY, TODAY = Fixed("yesterday", "gestern"), Fixed("today", "heute")
OFTEN, NEVER = Fixed("often", "oft"), Fixed("never", "nie")
BECAUSE, THAT = Fixed("because", "weil"), Fixed("that", "dass")


def phrase(words, **rest):
    """From its English: "a old dog" (the tree knows no "an"), "two cats", "she", "Anna", "Rome"."""
    for known in (PRONOUNS, NAMES, CITIES):
        if words in known:
            return known[words]
    *start, noun = words.split(" ")
    adjective = ADJECTIVES[start.pop()] if start and start[-1] in ADJECTIVES else None
    determiner = DETERMINERS[" ".join(start)]
    return NounPhrase(
        NOUNS.get(noun) or PLURALS[noun], determiner, noun in PLURALS, adjective, **rest
    )


def clause(subject, verb, *objects, tense="present", **rest):
    subject, *objects = [phrase(x) if isinstance(x, str) else x for x in (subject, *objects)]
    return Clause(subject, VERBS.get(verb, TO_BE), tense, tuple(objects), **rest)


def place(preposition, german, words):
    return Place(Fixed(preposition, german), phrase(words))


def is_(subject, adjective, than=None, equal=False, **rest):
    predicate = Predicate(ADJECTIVES[adjective], phrase(than) if than else None, equal)
    return clause(subject, "be", predicate=predicate, **rest)


def that(subject, verb, inner, tense="present"):
    return Subordination(Clause(phrase(subject), SPEECH[verb], tense), THAT, inner)


def described(words, key, verb, *objects, tense="past"):
    relative = clause(RELATIVES[key], verb, *objects, tense=tense)
    return phrase(words, relative=relative)


def seen(words, key, subject, verb, tense="past"):
    """The noun with a relative clause whose object it is."""
    pronoun, case = RELATIVES[key], VERBS[verb].complements[0].case
    front = Fixed(pronoun.english("accusative"), pronoun.german(case))
    return phrase(words, relative=clause(subject, verb, tense=tense, front=front))


def fronted(word, german, *args, **rest):
    return clause(*args, front=Fixed(word, german), **rest)


CASES = {
    "weak, mixed and strong endings": [
        (
            clause("the old man", "see", "the old woman"),
            "The old man sees the old woman.",
            "Der alte Mann sieht die alte Frau.",
        ),
        (
            clause("a old man", "see", "a small dog"),
            "An old man sees a small dog.",
            "Ein alter Mann sieht einen kleinen Hund.",
        ),
        (
            clause("my small child", "buy", "a orange"),
            "My small child buys an orange.",
            "Mein kleines Kind kauft eine Orange.",
        ),
        (
            clause("many old men", "help", "two small children"),
            "Many old men help two small children.",
            "Viele alte Männer helfen zwei kleinen Kindern.",
        ),
        (
            clause("Anna's old dog", "see", "young cats"),
            "Anna's old dog sees young cats.",
            "Annas alter Hund sieht junge Katzen.",
        ),
        (
            clause("these tired horses", "follow", "every old goat"),
            "These tired horses follow every old goat.",
            "Diese müden Pferde folgen jeder alten Ziege.",
        ),
        (
            clause("she", "buy", "a expensive hat"),
            "She buys an expensive hat.",
            "Sie kauft einen teuren Hut.",
        ),
    ],
    "verb second": [
        (
            fronted("yesterday", "gestern", "the boy", "find", "a ring", tense="past"),
            "Yesterday the boy found a ring.",
            "Gestern fand der Junge einen Ring.",
        ),
        (
            clause("we", "find", "the key", tense="past", time=YESTERDAY),
            "We found the key yesterday.",
            "Wir fanden gestern den Schlüssel.",
        ),
    ],
    "separable verbs": [
        (clause("she", "get up"), "She gets up.", "Sie steht auf."),
        (
            clause("I", "call", "they", tense="past", time=YESTERDAY),
            "I called them yesterday.",
            "Ich rief sie gestern an.",
        ),
        (
            clause("you", "invite", "the neighbor", tense="perfect"),
            "You have invited the neighbor.",
            "Du hast den Nachbarn eingeladen.",
        ),
        (
            that("he", "know", clause("she", "run away", tense="past"), tense="past"),
            "He knew that she ran away.",
            "Er wusste, dass sie weglief.",
        ),
    ],
    "brackets": [
        (
            clause("the bear", "sleep", tense="future", place=place("in", "in", "the forest")),
            "The bear will sleep in the forest.",
            "Der Bär wird im Wald schlafen.",
        ),
        (
            clause("the bird", "run away", tense="perfect"),
            "The bird has run away.",
            "Der Vogel ist weggelaufen.",
        ),
        (
            clause("you", "buy", "the book", tense="want", time=TODAY),
            "You want to buy the book today.",
            "Du willst heute das Buch kaufen.",
        ),
        (
            clause("she", "buy", "the book", tense="should"),
            "She should buy the book.",
            "Sie sollte das Buch kaufen.",
        ),
        (
            clause("she", "look for", "a hat", tense="progressive"),
            "She is looking for a hat.",
            "Sie sucht gerade einen Hut.",
        ),
    ],
    "nicht and kein": [
        (
            clause("he", "buy", "the hat", negated=True),
            "He does not buy the hat.",
            "Er kauft den Hut nicht.",
        ),
        (
            clause("he", "buy", "a new hat", negated=True, tense="past"),
            "He did not buy a new hat.",
            "Er kaufte keinen neuen Hut.",
        ),
        (
            clause("she", "help", "a child", negated=True, tense="can"),
            "She cannot help a child.",
            "Sie kann keinem Kind helfen.",
        ),
        (
            clause("they", "eat", "fresh apples", negated=True),
            "They do not eat fresh apples.",
            "Sie essen keine frischen Äpfel.",
        ),
        (
            clause("we", "wait for", "he", negated=True),
            "We do not wait for him.",
            "Wir warten nicht auf ihn.",
        ),
        (
            clause("I", "call", "Anna", negated=True),
            "I do not call Anna.",
            "Ich rufe Anna nicht an.",
        ),
        (is_("I", "tired", negated=True), "I am not tired.", "Ich bin nicht müde."),
        (clause("no old cat", "swim"), "No old cat swims.", "Keine alte Katze schwimmt."),
    ],
    "dative, two objects, genitive": [
        (
            clause("the king", "thank", "the queen"),
            "The king thanks the queen.",
            "Der König dankt der Königin.",
        ),
        (
            clause("Tom", "give", "the friends", "a ball"),
            "Tom gives the friends a ball.",
            "Tom gibt den Freunden einen Ball.",
        ),
        (
            clause("Tom", "give", "she", "the ball", tense="past", time=YESTERDAY),
            "Tom gave her the ball yesterday.",
            "Tom gab ihr gestern den Ball.",
        ),
        (
            clause(phrase("the car", owner=phrase("my uncle")), "belong to", "I"),
            "My uncle's car belongs to me.",
            "Das Auto meines Onkels gehört mir.",
        ),
        (
            clause("we", "see", phrase("the old dog", owner=phrase("the boy"))),
            "We see the boy's old dog.",
            "Wir sehen den alten Hund des Jungen.",
        ),
    ],
    "prepositions": [
        (clause("she", "go to", "the school"), "She goes to the school.", "Sie geht zur Schule."),
        (
            clause("she", "go to", "this house"),
            "She goes to this house.",
            "Sie geht zu diesem Haus.",
        ),
        (clause("we", "drive to", "Rome"), "We drive to Rome.", "Wir fahren nach Rom."),
        (clause("we", "live in", "Vienna"), "We live in Vienna.", "Wir wohnen in Wien."),
        (clause("he", "come into", "the house"), "He comes into the house.", "Er kommt ins Haus."),
        (clause("he", "live in", "the house"), "He lives in the house.", "Er wohnt im Haus."),
        (
            clause("you", "think of", "the old castle"),
            "You think of the old castle.",
            "Du denkst an das alte Schloss.",
        ),
        (clause("I", "dream of", "the forest"), "I dream of the forest.", "Ich träume vom Wald."),
    ],
    "how often": [
        (
            clause("he", "buy", "the newspaper", adverb=OFTEN),
            "He often buys the newspaper.",
            "Er kauft die Zeitung oft.",
        ),
        (
            clause("he", "buy", "a newspaper", adverb=OFTEN),
            "He often buys a newspaper.",
            "Er kauft oft eine Zeitung.",
        ),
        (
            clause("he", "see", "she", adverb=NEVER, tense="perfect"),
            "He has never seen her.",
            "Er hat sie nie gesehen.",
        ),
        (is_("he", "sad", adverb=OFTEN), "He is often sad.", "Er ist oft traurig."),
    ],
    "relative clauses": [
        (
            clause(described("the dog", "other masculine", "sleep"), "wait"),
            "The dog that slept waits.",
            "Der Hund, der schlief, wartet.",
        ),
        (
            clause("I", "see", described("the women", "person plural", "run away")),
            "I see the women who ran away.",
            "Ich sehe die Frauen, die wegliefen.",
        ),
        (
            clause(seen("the man", "person masculine", "Anna", "invite"), "laugh", tense="past"),
            "The man whom Anna invited laughed.",
            "Der Mann, den Anna einlud, lachte.",
        ),
        (
            clause(seen("the children", "person plural", "I", "help", "perfect"), "cry"),
            "The children whom I have helped cry.",
            "Die Kinder, denen ich geholfen habe, weinen.",
        ),
        (
            clause("she", "need", seen("a book", "other neuter", "he", "lose")),
            "She needs a book that he lost.",
            "Sie braucht ein Buch, das er verlor.",
        ),
    ],
    "links": [
        (
            Subordination(
                clause("the cat", "sleep"),
                BECAUSE,
                is_(ANAPHORS["other feminine"], "tired"),
            ),
            "The cat sleeps because it is tired.",
            "Die Katze schläft, weil sie müde ist.",
        ),
        (
            Subordination(
                clause("she", "lose", ANAPHORS["other masculine"], tense="past"),
                Fixed("although", "obwohl"),
                clause("she", "need", "the ring", tense="past"),
                clause_first=True,
            ),
            "Although she needed the ring, she lost it.",
            "Obwohl sie den Ring brauchte, verlor sie ihn.",
        ),
        (
            Coordination(
                clause("Paul", "buy", "a car", tense="perfect"),
                Fixed("but", "aber"),
                clause("he", "sell", ANAPHORS["other neuter"], tense="want"),
            ),
            "Paul has bought a car, but he wants to sell it.",
            "Paul hat ein Auto gekauft, aber er will es verkaufen.",
        ),
        (
            Coordination(
                clause("I", "wait"), Fixed("and", "und"), clause("they", "dance", tense="future")
            ),
            "I wait, and they will dance.",
            "Ich warte und sie werden tanzen.",
        ),
        (
            that("I", "believe", clause("you", "work", tense="must")),
            "I believe that you must work.",
            "Ich glaube, dass du arbeiten musst.",
        ),
        (
            Subordination(
                clause("I", "sleep"),
                BECAUSE,
                clause(described("the boy", "person masculine", "cry"), "wait"),
            ),
            "I sleep because the boy who cried waits.",
            "Ich schlafe, weil der Junge, der weinte, wartet.",
        ),
        (
            Subordination(
                clause("she", "see", described("the boy", "person masculine", "cry")),
                BECAUSE,
                clause("she", "wait"),
            ),
            "She sees the boy who cried because she waits.",
            "Sie sieht den Jungen, der weinte, weil sie wartet.",
        ),
    ],
    "zu": [
        (
            Infinitive(
                clause("he", "go to", "the park", tense="past"),
                clause("he", "call", "a friend"),
                purpose=True,
            ),
            "He went to the park to call a friend.",
            "Er ging zum Park, um einen Freund anzurufen.",
        ),
        (
            Infinitive(
                Clause(PRONOUNS["she"], CONTROL["try"], "perfect"),
                clause("she", "help", "we"),
                purpose=False,
            ),
            "She has tried to help us.",
            "Sie hat versucht, uns zu helfen.",
        ),
    ],
    "questions": [
        (
            Question(clause("you", "visit", "the aunt")),
            "Do you visit the aunt?",
            "Besuchst du die Tante?",
        ),
        (
            Question(clause("Emma", "arrive", tense="perfect")),
            "Has Emma arrived?",
            "Ist Emma angekommen?",
        ),
        (
            Question(fronted("why", "warum", "he", "laugh", tense="past", negated=True)),
            "Why did he not laugh?",
            "Warum lachte er nicht?",
        ),
        (
            Question(clause(WHO, "write", "this letter", tense="past")),
            "Who wrote this letter?",
            "Wer schrieb diesen Brief?",
        ),
        (
            Question(fronted("whom", "wem", "you", "help", tense="want")),
            "Whom do you want to help?",
            "Wem willst du helfen?",
        ),
        (Question(is_("they", "old")), "Are they old?", "Sind sie alt?"),
    ],
    "comparison": [
        (
            is_("the horse", "old", "my dog"),
            "The horse is older than my dog.",
            "Das Pferd ist älter als mein Hund.",
        ),
        (
            is_("the lamp", "expensive", "a hat", equal=True, tense="past"),
            "The lamp was as expensive as a hat.",
            "Die Lampe war so teuer wie ein Hut.",
        ),
        (
            that("we", "say", is_("he", "strong", "the king", tense="future")),
            "We say that he will be stronger than the king.",
            "Wir sagen, dass er stärker sein wird als der König.",
        ),
    ],
    "there is, and numbers": [
        (
            Existence(phrase("a hungry fox"), place("in", "in", "the garden"), past=False),
            "There is a hungry fox in the garden.",
            "Im Garten gibt es einen hungrigen Fuchs.",
        ),
        (
            Existence(phrase("twelve keys"), place("behind", "hinter", "our house"), past=True),
            "There were twelve keys behind our house.",
            "Hinter unserem Haus gab es zwölf Schlüssel.",
        ),
        (
            clause("a hundred birds", "sleep"),
            "A hundred birds sleep.",
            "Hundert Vögel schlafen.",
        ),
    ],
}


@pytest.mark.parametrize(
    "tree, english, german",
    [
        pytest.param(*case, id=f"{name}-{i}")
        for name, cs in CASES.items()
        for i, case in enumerate(cs)
    ],
)
def test_a_tree_and_its_two_sentences(tree, english, german):
    assert speak(tree) == (english, german)


def test_it_takes_the_gender_of_its_noun():
    german = {
        gender: speak(is_(ANAPHORS[f"other {gender}"], "old"))[1]
        for gender in ("masculine", "feminine", "neuter")
    }
    assert german == {
        "masculine": "Er ist alt.",
        "feminine": "Sie ist alt.",
        "neuter": "Es ist alt.",
    }
