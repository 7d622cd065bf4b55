"""What corpus can be learned in minutes, with nothing downloaded? A small English-German grammar.

SYNTHETIC: no sentence here was written by a person. A random tree is drawn and spoken twice
(`syntax`), so every pair is a correct translation, and every English sentence has exactly one
German one. "it" is used only where it can mean one noun, for German must know the gender.

The grammar covers agreement, the weak, mixed and strong endings of adjectives, verb-second and
verb-final order, separable verbs, perfect, future and modal brackets, nicht and kein, dative,
genitive and prepositional objects, relative and subordinate clauses, zu-infinitives, questions,
comparison and number words. The words are in `lexicon`, their forms in `inflection`.

Held-out sentences are unseen combinations of words and rules that training has seen: a BLEU on
them says that a model has learned this grammar, and nothing about translation at large.
"""

import random
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import islice

from tfx.data import lexicon
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
    Determiner,
    Name,
    Pronoun,
    Verb,
    rows,
)
from tfx.data.syntax import (
    WHO,
    Clause,
    Coordination,
    Existence,
    Fixed,
    Infinitive,
    NounPhrase,
    Phrase,
    Place,
    Predicate,
    Question,
    Subordination,
    speak,
)

VERSION = 1  # goes up with every change of what `pairs` yields
SEED = 2017
SIZES = {"test": 1_000, "valid": 1_000, "train": 198_000}  # pairs, in the order they are drawn
LONGEST = 20  # words a side


# ---- What there is to draw from ------------------------------------------------------------------

Choices = list[tuple[list[Determiner], bool]]  # (determiners, plural?), repeated by weight


def read_choices(table: str) -> Choices:
    """From rows "weight number: determiners"."""
    drawn = []
    for line in table.strip().splitlines():
        head, names = line.split(":")
        weight, number = head.split()
        determiners = [DETERMINERS[name.strip()] for name in names.split(",")]
        drawn += [(determiners, number == "plural")] * int(weight)
    return drawn


def by_tense(table: str) -> dict[str, list[Fixed]]:
    drawn = {}
    for (english,), (german,), (tenses,) in rows(table):
        for tense in tenses.split():
            drawn.setdefault(tense, []).append(Fixed(english, german))
    return drawn


POSSESSIVE = "my, your, his, her, our, their"
DEFINITE = read_choices(f"""
    8 singular: the
    2 plural: the
    1 singular: this
    1 plural: these
    5 singular: {POSSESSIVE}
    1 plural: {POSSESSIVE}
    1 singular: {", ".join(f"{name}'s" for name in NAMES)}""")
INDEFINITE = read_choices("""
    5 singular: a
    1 plural:""")
EVERY = read_choices("1 singular: every")
COUNTED = read_choices(f"""
    1 plural: many, some
    1 plural: {", ".join(english for (english,), _ in rows(lexicon.NUMBER_TABLE))}""")
NEGATIVE = read_choices("1 singular: no")
OWNING = read_choices("1 singular: the, my, our")
NEGATABLE = DEFINITE + INDEFINITE
ANY = NEGATABLE + EVERY + COUNTED
EXISTING = read_choices("3 singular: a") + NEGATIVE + COUNTED

ADJECTIVES_OF = {
    kind: [adjective for adjective in ADJECTIVES.values() if kind in adjective.kinds]
    for kind in lexicon.NOUN_TABLES
}
NOUNS_OF = {
    kind: [noun for noun in NOUNS.values() if noun.kind == kind] for kind in lexicon.NOUN_TABLES
}
SPEAKERS = [PRONOUNS[name] for name in ("I", "you", "he", "she", "we", "they")]
ALIVE = ("person", "animal")
SUBJECTS = ["person"] * 9 + ["animal"] * 2 + ["thing", "text", "food", "place"]
STATES = [base for (bases,) in rows(lexicon.STATES) for base in bases]
TRANSITIVE = [
    verb
    for verb in VERBS.values()
    if len(verb.complements) == 1 and not verb.complements[0].preposition
]
MOTIONS = [v for v in VERBS.values() if v.complements and v.complements[0].preposition == "zu"]
ACTIONS = [v for v in VERBS.values() if "person" in v.subjects and v.base not in STATES]
PLACEABLE = [v for v in ACTIONS if not v.complements or v in TRANSITIVE]  # done in the garden

PLACES = [Fixed(english, german) for (english,), (german,) in rows(lexicon.PLACE_TABLE)]
TIMES = by_tense(lexicon.TIME_TABLE)
ADVERBS = by_tense(lexicon.ADVERB_TABLE)
LATER = ["future", "future", "can", "must", "may", "want", "should"]
NOW = ["present"] * 4 + ["perfect"] * 2 + ["progressive", *LATER]
PAST = ["past"]
ALL = NOW + PAST * 4
# What becomes of a tense when nothing happens (She is tired. The book is hers.)
STATIC = {"progressive": "present", "perfect": "present"}
STATIC |= dict.fromkeys(["can", "may", "want"], "future")

AND, BUT, THAT = Fixed("and", "und"), Fixed("but", "aber"), Fixed("that", "dass")
BEFORE, WHILE = Fixed("before", "bevor"), Fixed("while", "während")
# Links between clauses, with the tenses of the main and of the linked clause
LINKS = [
    (AND, NOW, NOW),
    (AND, PAST, PAST),
    (BUT, NOW, NOW),
    (BUT, PAST, PAST),
    (BEFORE, LATER, ["present"]),
    (BEFORE, PAST, PAST),
    (WHILE, PAST, PAST),
    (Fixed("if", "wenn"), LATER, ["present"]),
    (Fixed("because", "weil"), NOW, NOW),
    (Fixed("because", "weil"), PAST, PAST),
    (Fixed("although", "obwohl"), NOW, NOW),
    (Fixed("although", "obwohl"), PAST, PAST),
]


# ---- Drawing phrases -----------------------------------------------------------------------------


def pick(rng: random.Random, options: list):
    # Of all of Random, only random() is promised to be the same in every version of Python.
    return options[int(rng.random() * len(options))]


def chance(rng: random.Random, rate: float) -> bool:
    return rng.random() < rate


def noun_phrase(rng, kind: str, choices: Choices = ANY) -> NounPhrase:
    noun = pick(rng, NOUNS_OF[kind])
    determiners, plural = pick(rng, choices)
    determiner = pick(rng, determiners)
    adjective = pick(rng, ADJECTIVES_OF[kind]) if chance(rng, 0.35) else None
    owner = None
    if determiner.english == "the" and kind != "place" and chance(rng, 0.12):
        (owners, _), person = pick(rng, OWNING), pick(rng, NOUNS_OF["person"])
        owner = NounPhrase(person, pick(rng, owners)) if person is not noun else None
    return NounPhrase(noun, determiner, plural, adjective, owner)


def participant(rng, kind: str, choices: Choices = ANY) -> Phrase:
    if kind == "city":
        return pick(rng, list(CITIES.values()))
    if kind == "person":
        if chance(rng, 0.3):
            return pick(rng, SPEAKERS)
        if chance(rng, 0.2):
            return pick(rng, list(NAMES.values()))
    return noun_phrase(rng, kind, choices)


def clash(one: Phrase, two: Phrase) -> bool:
    """Whether both can mean the same, which would need a reflexive (I see me, we see me)."""
    if isinstance(one, Pronoun) and isinstance(two, Pronoun):
        return one.forms == two.forms or {one.agreement, two.agreement} == {"ich", "wir"}
    if isinstance(one, NounPhrase) and isinstance(two, NounPhrase):
        return one.noun is two.noun
    if isinstance(one, Name) and isinstance(two, NounPhrase):
        return two.determiner.english == f"{one.english()}'s"
    return one is two


def other(rng, subject: Phrase, kind: str, choices: Choices = ANY) -> Phrase:
    while clash(subject, phrase := participant(rng, kind, choices)):
        pass
    return phrase


def draw_objects(rng, verb: Verb, subject: Phrase, choices: Choices = ANY) -> tuple[Phrase, ...]:
    objects = []
    for complement in verb.complements:
        kind = pick(rng, complement.kinds)
        # no "He does not wait for a man.", no "He does not give a man the book."
        delicate = complement.preposition or complement is not verb.complements[-1]
        definite = kind == "place" or (delicate and choices is NEGATABLE)
        objects.append(other(rng, subject, kind, DEFINITE if definite else choices))
    return tuple(objects)


def draw_place(rng) -> Place:
    return Place(pick(rng, PLACES), noun_phrase(rng, "place", DEFINITE))


def draw_time(rng, tense: str, negated: bool) -> dict[str, Fixed]:
    """The time or the adverb of a clause, or neither."""
    if tense in ADVERBS and not negated and chance(rng, 0.3):
        return {"adverb": pick(rng, ADVERBS[tense])}
    times = TIMES.get(tense, [])
    if negated:  # "not every day" and "every day ... not" are two things
        times = [time for time in times if time.english != "every day"]
    return {"time": pick(rng, times)} if times else {}


# ---- Drawing clauses -----------------------------------------------------------------------------


@cache
def verbs_of(subject: str, object: str = "") -> list[Verb]:
    """The verbs whose subject, and object if one is named, can be of these kinds."""
    if not object:
        return [verb for verb in VERBS.values() if subject in verb.subjects]
    takes = [verb for verb in TRANSITIVE if object in verb.complements[0].kinds]
    return [verb for verb in takes if subject in verb.subjects]


def draw_clause(rng, tenses, subject=None, object=None, brief: bool = False) -> Clause:
    """A clause in one of the tenses; `subject` and `object` are drawn where they are None."""
    kind = subject.kind if subject else "person" if object else pick(rng, SUBJECTS)
    alive = kind in ALIVE
    tense = pick(rng, tenses)
    predicative = not object and chance(rng, 0.12 if alive else 0.8)
    verb = TO_BE if predicative else pick(rng, verbs_of(kind, object.kind if object else ""))
    if not alive or predicative:
        tense = STATIC.get(tense, tense)
    if tense == "progressive" and verb.base in STATES:
        tense = "present"
    negated = tense != "must" and chance(rng, 0.12)  # "must not" is "nicht dürfen"
    timed = alive and chance(rng, 0.15 if brief else 0.4)
    extra = draw_time(rng, tense, negated) if timed else {}
    choices = NEGATABLE if negated or "adverb" in extra else ANY  # no "every man never sleeps"
    subject = subject or participant(rng, kind, choices)
    while object and clash(subject, object):
        subject = participant(rng, kind, choices)
    if predicative:
        predicate = draw_predicate(rng, subject)
        return Clause(subject, verb, tense, predicate=predicate, negated=negated, **extra)
    if not brief and verb in PLACEABLE and chance(rng, 0.15):
        extra["place"] = draw_place(rng)
    objects = (object,) if object else draw_objects(rng, verb, subject, choices)
    return Clause(subject, verb, tense, objects, negated=negated, **extra)


def draw_predicate(rng, subject: Phrase) -> Predicate:
    known = subject.adjective if isinstance(subject, NounPhrase) else None  # no "old man is old"
    adjective = pick(rng, [a for a in ADJECTIVES_OF[subject.kind] if a is not known])
    if adjective.english_comparative == "-" or chance(rng, 0.65):
        return Predicate(adjective)
    while clash(subject, than := noun_phrase(rng, subject.kind, NEGATABLE)):
        pass
    return Predicate(adjective, than, equal=chance(rng, 0.35))


@cache
def pronoun_for(kind: str, gender: str, relative: bool = False) -> Pronoun | None:
    """he, she, it, they, or the relative who, that, with the German gender of a noun."""
    group = "person" if kind == "person" else "other"
    found = (RELATIVES if relative else ANAPHORS).get(f"{group} {gender}")
    return replace(found, kind=kind) if found else None


def take_up(first: Clause, phrase: Phrase) -> Pronoun | None:
    """The pronoun for a phrase of the first clause; None where "it" could mean another noun."""
    if isinstance(phrase, Pronoun):
        return phrase
    if phrase.kind == "city":
        return None
    pronoun = pronoun_for(phrase.kind, phrase.gender)
    than = first.predicate.than if first.predicate else None
    nouns = [first.subject, *first.objects, *([than] if than else [])]
    singular = [n for n in nouns if n.agreement == "er" and n.kind not in ("person", "city")]
    ambiguous = phrase in singular and len(singular) > 1
    return None if ambiguous else pronoun


def continue_from(rng, first: Clause, tenses) -> Clause:
    """A second clause, which may speak of the same subject and object by pronouns."""
    subject = take_up(first, first.subject) if chance(rng, 0.55) else None
    object = take_up(first, first.objects[-1]) if first.objects and chance(rng, 0.45) else None
    if object and subject and clash(subject, object):
        object = None
    if object and not verbs_of(subject.kind if subject else "person", object.kind):
        object = None
    return draw_clause(rng, tenses, subject, object, brief=True)


def repeats(first: Clause, second: Clause) -> bool:
    """Whether two clauses of a sentence say the same: He waits because I wait."""
    if first.predicate and second.predicate:
        return first.predicate.adjective is second.predicate.adjective
    return first.verb is second.verb


def draw_relative(rng, head: NounPhrase) -> Clause:
    """A clause about the head, which is its subject or its object."""
    pronoun = pronoun_for(head.kind, head.gender, relative=True)
    tense = pick(rng, ["present", "past", "perfect"])
    about = [verb for verb in TRANSITIVE if head.kind in verb.complements[0].kinds]
    if about and chance(rng, 0.5):
        verb = pick(rng, about)
        subject = other(rng, head, pick(rng, [kind for kind in verb.subjects if kind in ALIVE]))
        front = Fixed(pronoun.english("accusative"), pronoun.german(verb.complements[0].case))
        return Clause(subject, verb, tense, front=front)
    verb = pick(rng, [v for v in verbs_of(head.kind) if not v.complements or v in TRANSITIVE])
    return Clause(pronoun, verb, tense, draw_objects(rng, verb, head))


# ---- Drawing sentences ---------------------------------------------------------------------------


def describable(phrase: Phrase) -> bool:
    """Whether a restrictive relative clause can follow."""
    if not isinstance(phrase, NounPhrase) or phrase.owner:
        return False
    return phrase.determiner.english in ("the", "a", "every", "these", "many", "some")


def statement(rng) -> Clause:
    """A clause as it was drawn, or with a time in front, with "no", with a relative clause."""
    clause = draw_clause(rng, ALL)
    if clause.time and chance(rng, 0.35):
        return clause._replace(front=clause.time, time=None)
    if chance(rng, 0.05):
        subject = noun_phrase(rng, "person", NEGATIVE)
        tenses = [tense for tense in ALL if tense != "must"]  # no one must: may, or need?
        return draw_clause(rng, tenses, subject)._replace(negated=False, adverb=None)
    if not chance(rng, 0.25):
        return clause
    if describable(clause.subject):
        subject = clause.subject._replace(relative=draw_relative(rng, clause.subject))
        return clause._replace(subject=subject)
    # A relative clause is kept next to its noun: nothing may come after the object.
    last = clause.verb in TRANSITIVE and not clause.verb.prefix and not clause.negated
    if last and clause.tense in ("present", "past") and not (clause.time or clause.place):
        (phrase,) = clause.objects
        if describable(phrase) and not clause.adverb:
            return clause._replace(objects=(phrase._replace(relative=draw_relative(rng, phrase)),))
    return clause


def polar_question(rng) -> Question:
    """Does the dog sleep?"""
    return Question(draw_clause(rng, ALL)._replace(negated=False))


def why_question(rng) -> Question:
    """Why did she not laugh?"""
    return Question(draw_clause(rng, ALL, brief=True)._replace(front=Fixed("why", "warum")))


def when_question(rng) -> Question:
    """When will you visit Anna?"""
    clause = draw_clause(rng, ["present", "past", "past", "future", "can", "must", "should"])
    if clause.verb not in ACTIONS:
        return when_question(rng)
    front = Fixed("when", "wann")
    return Question(clause._replace(front=front, time=None, adverb=None, negated=False))


def where_question(rng) -> Question:
    """Where is he waiting?"""
    clause = draw_clause(rng, ["present", "past", "past", "future", "progressive"])
    if clause.verb not in PLACEABLE:
        return where_question(rng)
    front = Fixed("where", "wo")
    return Question(clause._replace(front=front, place=None, adverb=None, negated=False))


def who_question(rng) -> Question:
    """Who bought the hat?"""
    return Question(draw_clause(rng, ALL, WHO)._replace(negated=False))


def whom_question(rng) -> Question:
    """Whom does she help? What did they lose?"""
    verb = pick(rng, [verb for verb in TRANSITIVE if "person" in verb.subjects])
    (complement,) = verb.complements
    asked = WHO if "person" in complement.kinds else PRONOUNS["what"]
    front = Fixed(asked.english("accusative"), asked.german(complement.case))
    tense = pick(rng, ["present", "past", "past", "future", "perfect", "must", "want", "should"])
    time = draw_time(rng, tense, negated=False) if chance(rng, 0.4) else {}
    return Question(Clause(participant(rng, "person"), verb, tense, front=front, **time))


def compound(rng) -> Coordination | Subordination:
    """It sleeps because it is tired. I wait, but they dance."""
    link, main_tenses, linked_tenses = pick(rng, LINKS)
    linked_first = link not in (AND, BUT) and chance(rng, 0.25)
    tenses = (linked_tenses, main_tenses) if linked_first else (main_tenses, linked_tenses)
    first = draw_clause(rng, tenses[0], brief=True)
    second = continue_from(rng, first, tenses[1])
    main, linked = (second, first) if linked_first else (first, second)
    event = linked.verb in ACTIONS and not linked.negated and not linked.adverb
    if repeats(first, second) or (link in (BEFORE, WHILE) and not event):
        return compound(rng)
    if link in (AND, BUT):
        return Coordination(first, link, second)
    return Subordination(main, link, linked, linked_first)


def report(rng) -> Subordination:
    """She knows that we are happy."""
    tense = pick(rng, ["present", "past"])
    main = Clause(participant(rng, "person"), pick(rng, list(SPEECH.values())), tense)
    return Subordination(main, THAT, continue_from(rng, main, PAST if tense == "past" else ALL))


def infinitive(rng) -> Infinitive:
    """He goes to the park to call her. They try to help us."""
    subject = participant(rng, "person")
    tense = pick(rng, ["present", "past", "past", "perfect", "future", "must", "want"])
    purpose = chance(rng, 0.5)
    if purpose:
        verb = pick(rng, MOTIONS)
        action = pick(rng, [v for v in ACTIONS if v.complements and v not in MOTIONS])
    else:
        verb, action = pick(rng, list(CONTROL.values())), pick(rng, ACTIONS)
    main = Clause(subject, verb, tense, draw_objects(rng, verb, subject))
    return Infinitive(
        main, Clause(subject, action, objects=draw_objects(rng, action, subject)), purpose
    )


def existence(rng) -> Existence:
    """There are three keys in the house."""
    phrase = noun_phrase(rng, pick(rng, ["animal", "thing", "food"]), EXISTING)
    return Existence(phrase, draw_place(rng), past=chance(rng, 0.3))


SENTENCES = [statement] * 10 + [polar_question] * 2 + [compound] * 6 + [report, infinitive] * 2
SENTENCES += [why_question, when_question, where_question, who_question, whom_question, existence]


def sentences() -> Iterator[tuple[str, str]]:
    """Pairs without end, no English sentence twice."""
    rng, seen = random.Random(SEED), set()
    while True:
        english, german = speak(pick(rng, SENTENCES)(rng))
        longest = max(english.count(" "), german.count(" ")) + 1
        if english not in seen and longest <= LONGEST:
            seen.add(english)
            yield english, german


def pairs(split: str) -> Iterator[tuple[str, str]]:
    """(English, German) pairs of "train" (198,000), "valid" or "test" (1,000 each).

    The same in every run and Python version; no English sentence is in two splits.
    """
    if split not in SIZES:
        raise ValueError(f"split {split!r}: the embedded corpus has train, valid and test")
    before = list(SIZES)[: list(SIZES).index(split)]
    start = sum(SIZES[name] for name in before)
    return islice(sentences(), start, start + SIZES[split])
