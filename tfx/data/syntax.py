"""How is one tree spoken in English and in German?

The nodes of the embedded corpus's grammar. A tree (`Clause`, `NounPhrase`, ...) says what is
meant; its `english` and `german` methods put the words into forms and in order. `speak` turns
a whole sentence into a pair of strings.
"""

from typing import NamedTuple, Protocol

from tfx.data import lexicon
from tfx.data.inflection import (
    DETERMINERS,
    IRREGULAR,
    MODALS,
    PRONOUNS,
    TO_BE,
    Adjective,
    Determiner,
    Name,
    Noun,
    Pronoun,
    Verb,
    rows,
)

CONTRACTIONS = {apart: joined for (apart,), (joined,) in rows(lexicon.CONTRACTION_TABLE)}
WHO = PRONOUNS["who"]


class Phrase(Protocol):
    """What can be a subject or an object: NounPhrase, Pronoun or Name."""

    kind: str  # person | animal | thing | text | food | place | city
    agreement: str  # one of inflection.PERSONS
    indefinite: bool  # its negation is kein

    def english(self, case: str = "nominative") -> str: ...
    def german(self, case: str = "nominative") -> str: ...


class Fixed(NamedTuple):
    """A word or phrase that never changes: yesterday = gestern."""

    english: str
    german: str


def spaced(*parts: str) -> str:
    return " ".join(filter(None, parts))


class NounPhrase(NamedTuple):
    noun: Noun
    determiner: Determiner
    plural: bool = False
    adjective: Adjective | None = None
    owner: "NounPhrase | None" = None  # the woman's chair; goes with the determiner "the"
    relative: "Clause | None" = None  # its subject or its front is a relative pronoun

    @property
    def kind(self) -> str:
        return self.noun.kind

    @property
    def agreement(self) -> str:
        return "sie" if self.plural else "er"

    @property
    def gender(self) -> str:
        return "plural" if self.plural else self.noun.gender

    @property
    def indefinite(self) -> bool:
        return self.determiner.english in ("a", "")

    def english(self, case: str = "nominative") -> str:
        noun = self.noun.plural if self.plural else self.noun.singular
        if self.adjective:
            noun = f"{self.adjective.english} {noun}"
        determiner = f"{self.owner.english()}'s" if self.owner else self.determiner.english
        if determiner == "a" and noun[0] in "aeiou":
            determiner = "an"
        return spaced(determiner, noun, self.relative.english() if self.relative else "")

    def german(self, case: str = "nominative", negated: bool = False) -> str:
        form = case, self.gender
        determiner = DETERMINERS["no"] if negated else self.determiner
        adjective = self.adjective.stem + determiner.adjective[form] if self.adjective else ""
        text = spaced(
            determiner.stem + determiner.endings[form],
            adjective,
            self.noun.german[case, self.plural],
            self.owner.german("genitive") if self.owner else "",
        )
        return f"{text}, {self.relative.german('final')}," if self.relative else text


def prepositional(preposition: str, phrase: Phrase, case: str) -> str:
    """im Haus, zu einem Haus, nach Berlin, auf sie."""
    if phrase.kind == "city" and preposition == "zu":
        preposition = "nach"
    article, space, rest = phrase.german(case).partition(" ")
    start = f"{preposition} {article}"
    return CONTRACTIONS.get(start, start) + space + rest


class Place(NamedTuple):
    preposition: Fixed
    phrase: NounPhrase

    def english(self) -> str:
        return f"{self.preposition.english} {self.phrase.english()}"

    def german(self) -> str:
        return prepositional(self.preposition.german, self.phrase, "dative")


class Predicate(NamedTuple):
    """old | older than `than` | (equal) as old as `than`."""

    adjective: Adjective
    than: NounPhrase | Name | None = None
    equal: bool = False

    def english(self) -> str:
        if self.than is None:
            return self.adjective.english
        if self.equal:
            return f"as {self.adjective.english} as {self.than.english()}"
        return f"{self.adjective.english_comparative} than {self.than.english()}"

    def german(self) -> tuple[str, str]:
        """The adjective, and what German puts behind the last verb."""
        if self.than is None:
            return self.adjective.german, ""
        if self.equal:
            return f"so {self.adjective.german}", f"wie {self.than.german()}"
        return self.adjective.german_comparative, f"als {self.than.german()}"


def english_verb(verb: Verb, tense: str, person: str, support: bool) -> tuple[str, str]:
    """The auxiliary ("" if none) and the rest; `support`: a plain verb takes do."""
    third = person == "er"
    if tense == "perfect":
        return ("has" if third else "have"), verb.participle
    if tense == "future":
        return "will", verb.base
    if tense == "progressive":
        return IRREGULAR["am"][person], verb.gerund
    if tense in MODALS and tense != "want":
        return tense, verb.base
    if verb is TO_BE and tense != "want":
        return IRREGULAR["was" if tense == "past" else "am"][person], ""
    base, inflected = verb.base, verb.third
    if tense == "want":
        base, inflected = f"want to {verb.base}", f"wants to {verb.base}"
    if tense == "past":
        return ("did", base) if support else ("", verb.past)
    if support:
        return ("does" if third else "do"), base
    return "", inflected if third else base


def german_verb(verb: Verb, tense: str, person: str) -> tuple[str, str]:
    """The finite verb, and the right bracket: prefix, participle or infinitive."""
    if tense == "perfect":
        return IRREGULAR[verb.auxiliary][person], verb.partizip
    if tense == "future":
        return IRREGULAR["werde"][person], verb.infinitive
    if tense in MODALS:
        return MODALS[tense][person], verb.infinitive
    forms = verb.preterite if tense == "past" else verb.present
    return forms[person], verb.prefix


class Clause(NamedTuple):
    subject: Phrase
    verb: Verb
    tense: str = "present"  # past perfect future progressive can must may want should
    objects: tuple[Phrase, ...] = ()  # one for each of the verb's complements
    predicate: Predicate | None = None  # of to be
    place: Place | None = None
    time: Fixed | None = None
    adverb: Fixed | None = None  # how often
    negated: bool = False
    front: Fixed | None = None  # what stands first: a time, why, whom, a relative pronoun

    mark = "."

    def english(self, question: bool = False) -> str:
        support = question or self.negated
        first, rest = english_verb(self.verb, self.tense, self.subject.agreement, support)
        subject, negation = self.subject.english(), "not" if self.negated else ""
        if question:
            start = first, subject, negation
        elif self.negated and first == "can":
            start = subject, "cannot"
        else:
            start = subject, first, negation
        return spaced(
            self.front.english if self.front else "",
            *start,
            self.adverb.english if self.adverb else "",
            rest,
            *self.english_rest(),
        )

    def english_rest(self) -> list[str]:
        return [
            *(phrase.english("accusative") for phrase in self.objects),
            self.predicate.english() if self.predicate else "",
            self.place.english() if self.place else "",
            self.time.english if self.time else "",
        ]

    def german(self, order: str = "second") -> str:
        """The clause with its verb "first" (questions), "second" or "final" (subordinate)."""
        finite, bracket = german_verb(self.verb, self.tense, self.subject.agreement)
        subject = self.subject.german()
        front = self.front.german if self.front else ""
        rest = self.predicate.german()[1] if self.predicate else ""
        if order == "final":
            # weil er aufsteht, but weil er schlafen will
            verbs = bracket + finite if bracket == self.verb.prefix else f"{bracket} {finite}"
            return spaced(front, subject, *self.german_middle(), verbs, rest)
        if order == "first" or front:
            return spaced(front, finite, subject, *self.german_middle(), bracket, rest)
        return spaced(subject, finite, *self.german_middle(), bracket, rest)

    def german_middle(self) -> list[str]:
        """What stands between the two parts of the verb: pronouns, time, nouns, nicht, places."""
        pronouns, early, late, prepositions = [], [], [], []
        nicht = self.negated
        for complement, phrase in zip(self.verb.complements, self.objects, strict=False):
            if complement.preposition:
                prepositions.append(prepositional(complement.preposition, phrase, complement.case))
            elif isinstance(phrase, Pronoun):
                pronouns.append(phrase.german(complement.case))
            elif nicht and phrase.indefinite:
                late.append(phrase.german(complement.case, negated=True))  # nicht ein = kein
                nicht = False
            elif self.adverb and not late and not phrase.indefinite:
                early.append(phrase.german(complement.case))  # liest das Buch oft, oft ein Buch
            else:
                late.append(phrase.german(complement.case))
        return [
            *pronouns,
            *early,
            self.time.german if self.time else "",
            self.adverb.german if self.adverb else "",
            "gerade" if self.tense == "progressive" else "",
            *late,
            "nicht" if nicht else "",
            *prepositions,
            self.place.german() if self.place else "",
            self.predicate.german()[0] if self.predicate else "",
        ]


class Question(NamedTuple):
    clause: Clause

    mark = "?"

    def english(self) -> str:
        return self.clause.english(question=self.clause.subject is not WHO)

    def german(self) -> str:
        return self.clause.german("second" if self.clause.subject is WHO else "first")


class Coordination(NamedTuple):
    first: Clause
    link: Fixed  # and, but
    second: Clause

    mark = "."

    def english(self) -> str:
        return f"{self.first.english()}, {self.link.english} {self.second.english()}"

    def german(self) -> str:
        comma = "" if self.link.german == "und" else ","
        return f"{self.first.german()}{comma} {self.link.german} {self.second.german()}"


class Subordination(NamedTuple):
    main: Clause
    link: Fixed  # because, that, ...
    clause: Clause
    clause_first: bool = False

    mark = "."

    def english(self) -> str:
        clause = f"{self.link.english} {self.clause.english()}"
        if self.clause_first:
            return f"{clause}, {self.main.english()}"
        return f"{self.main.english()} {clause}"

    def german(self) -> str:
        clause = f"{self.link.german} {self.clause.german('final')}"
        if self.clause_first:
            return f"{clause}, {self.main.german('first')}"
        return f"{self.main.german()}, {clause}"


class Infinitive(NamedTuple):
    main: Clause
    action: Clause  # its subject and tense are not heard
    purpose: bool  # um ... zu

    mark = "."

    def english(self) -> str:
        return spaced(self.main.english(), "to", self.action.verb.base, *self.action.english_rest())

    def german(self) -> str:
        um = "um" if self.purpose else ""
        return f"{self.main.german()}, " + spaced(
            um, *self.action.german_middle(), self.action.verb.zu
        )


class Existence(NamedTuple):
    phrase: NounPhrase
    place: Place
    past: bool

    mark = "."

    def english(self) -> str:
        be = IRREGULAR["was" if self.past else "am"][self.phrase.agreement]
        return f"there {be} {self.phrase.english()} {self.place.english()}"

    def german(self) -> str:
        gibt = "gab" if self.past else "gibt"
        return f"{self.place.german()} {gibt} es {self.phrase.german('accusative')}"


def speak(tree) -> tuple[str, str]:
    """The English and the German sentence."""

    def written(text: str) -> str:
        text = text.replace(",,", ",").rstrip(",")
        return text[0].upper() + text[1:] + tree.mark

    return written(tree.english()), written(tree.german())
