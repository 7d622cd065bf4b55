"""How good are answers? Every task's own measure, as rows that say exactly what was computed.

All but perplexity and bits come as rows {metric, score, signature}, scores in percent. What papers
report is computed as their scripts compute it; tests hold the definitions to exact small cases.
"""

import collections
import importlib.metadata
import itertools
import math
import re
import string
from collections.abc import Callable, Hashable, Mapping, Sequence

import numpy as np
import sacrebleu.metrics

import tfx

Row = dict[str, str | float]
Tags = Sequence[str]
ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
SENTENCES = "lines,punctuation"  # the rule of `sentences`, as signatures name it
CHUNK = 2000  # translations that are scored at once: 100 MB of n-grams, where all take GBs
# After these a sentence goes on.
ABBREVIATIONS = re.compile(r"al|cf|dr|e\.g|eqs?|figs?|i\.e|jr|mrs?|ms|prof|vs|(?-i:[A-HJ-Z])", re.I)


def _row(metric: str, share: float, version: str = f"tfx-{tfx.__version__}", **what) -> Row:
    signature = "|".join(f"{key}:{value}" for key, value in (what | {"version": version}).items())
    return {"metric": metric, "score": round(100 * float(share), 4), "signature": signature}


def _count(predicted: Sequence, references: Sequence, least: int = 1) -> int:
    if len(predicted) != len(references):
        raise ValueError(f"{len(predicted):,} predictions for {len(references):,} references")
    if len(references) < least:
        raise ValueError(f"{len(references)} answers to score; it takes {least} or more")
    return len(references)


# ---------------------------------------------------------------- classes and numbers


def accuracy(predicted: Sequence[Hashable], labels: Sequence[Hashable]) -> list[Row]:
    """How many are right."""
    count = _count(predicted, labels)
    right = sum(ours == theirs for ours, theirs in zip(predicted, labels, strict=True))
    return [_row("accuracy", right / count, n=count)]


def f1(predicted: Sequence[int], labels: Sequence[int]) -> list[Row]:
    """Of class 1 of two (GLUE: MRPC, QQP); 0 where none is both of it and said to be."""
    count = _count(predicted, labels)
    ours, theirs = (np.asarray(side) == 1 for side in (predicted, labels))
    return [_row("f1", _f1(sum(ours & theirs), sum(ours), sum(theirs)), n=count, positive=1)]


def _f1(both: int, ours: int, theirs: int) -> float:
    """Of so many in common: the harmonic mean of precision and recall."""
    return 2 * both / (ours + theirs) if both else 0.0


def matthews(predicted: Sequence[int], labels: Sequence[int]) -> list[Row]:
    """Matthews' correlation coefficient, of any number of classes (Gorodkin, 2004, equation 8);
    0 where one side is of one class only (GLUE: CoLA)."""
    count = _count(predicted, labels)
    classes, both = np.unique([predicted, labels], return_inverse=True)
    ours_NL, theirs_NL = np.eye(len(classes))[both.reshape(2, -1)]
    covariance = lambda one, two: count * (one * two).sum() - one.sum(0) @ two.sum(0)
    spread = covariance(ours_NL, ours_NL) * covariance(theirs_NL, theirs_NL)
    share = covariance(ours_NL, theirs_NL) / math.sqrt(spread) if spread else 0.0
    return [_row("matthews", share, n=count, classes=len(classes))]


def pearson(predicted: Sequence[float], values: Sequence[float]) -> list[Row]:
    """Correlation of numbers; 0 where one side is the same everywhere (GLUE: STS-B)."""
    count = _count(predicted, values, 2)
    return [_row("pearson", _correlation(predicted, values), n=count)]


def spearman(predicted: Sequence[float], values: Sequence[float]) -> list[Row]:
    """Correlation of ranks, ties sharing the mean of theirs; 0 as above."""
    from scipy.stats import rankdata

    count = _count(predicted, values, 2)
    return [_row("spearman", _correlation(rankdata(predicted), rankdata(values)), n=count)]


def _correlation(one: Sequence[float], two: Sequence[float]) -> float:
    one, two = (
        np.asarray(side, np.float64) - np.mean(side, dtype=np.float64) for side in (one, two)
    )
    spread = math.sqrt((one @ one) * (two @ two))
    return float(one @ two) / spread if spread else 0.0


# ------------------------------------------------------------------------- questions


def normalized(answer: str) -> str:
    """Without case, ASCII punctuation, articles, and white space but single blanks."""
    plain = answer.lower().translate(dict.fromkeys(map(ord, string.punctuation)))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", plain).split())


def exact_match(answer: str, references: Sequence[str]) -> float:
    """Whether an answer is one of the references, normalized."""
    return float(normalized(answer) in map(normalized, references))


def overlap(answer: str, references: Sequence[str]) -> float:
    """F1 of the words, normalized, with the reference that gives the most. "" has no words: it is
    like "" alone."""

    def with_one(reference: str) -> float:
        ours, theirs = normalized(answer).split(), normalized(reference).split()
        if not (ours and theirs):
            return float(ours == theirs)
        both = collections.Counter(ours) & collections.Counter(theirs)
        return _f1(both.total(), len(ours), len(theirs))

    return max(map(with_one, references))


SQUAD: dict[str, Callable[[str, Sequence[str]], float]] = {"exact": exact_match, "f1": overlap}


def _gold(predictions: Mapping, answers: Mapping[Hashable, Sequence[str]]) -> dict[str, list[str]]:
    """The references of every question: without those that normalize to nothing; [""] if none."""
    _count(answers, answers)
    if lacking := sorted(answers.keys() ^ predictions.keys()):
        what = "reference" if lacking[0] in predictions else "answer"
        raise ValueError(
            f'question "{lacking[0]}" has no {what}, as {len(lacking):,} in all; score the whole '
            "split that was answered"
        )
    return {name: [one for one in all if normalized(one)] or [""] for name, all in answers.items()}


def squad(
    predictions: Mapping[Hashable, str], answers: Mapping[Hashable, Sequence[str]]
) -> list[Row]:
    """Exact match and F1 as the script of SQuAD 2.0 has them (Rajpurkar et al., 2018); of 1.1 they
    are the same. Where some questions have no answer, those and the others are scored by
    themselves too.

    Args:
      predictions: by the id of the question, the answer; "": there is none.
      answers: references, all equally right; empty: there is none.
    """
    gold = _gold(predictions, answers)
    parts = {"": list(gold)}
    if any(references == [""] for references in gold.values()):
        parts["has_answer_"] = [name for name in gold if gold[name] != [""]]
        parts["no_answer_"] = [name for name in gold if gold[name] == [""]]
    what = {"normalized": "lower,punctuation,articles,space", "references": "max"}
    return [
        _row(
            part + metric,
            np.mean([score(predictions[name], gold[name]) for name in names]),
            n=len(names),
            **what,
        )
        for part, names in parts.items()
        if names
        for metric, score in SQUAD.items()
    ]


def best_threshold(
    null_scores: Mapping[Hashable, float],
    predictions: Mapping[Hashable, str],
    answers: Mapping[Hashable, Sequence[str]],
) -> dict[str, tuple[float, float]]:
    """Of `exact` and of `f1` the best score that a threshold gives, in percent, and the threshold.

    A question is answered where its null score is at most the threshold. As in the script of
    SQuAD 2.0, but that questions of equal null score stay together, and that a threshold under
    all of them stands for answering nothing.

    Args:
      null_scores: how much rather there is no answer.
      predictions: the best answer that is one.
    """
    gold = _gold(predictions, answers)
    _gold(null_scores, answers)
    names = sorted(gold, key=lambda name: null_scores[name])
    nulls = np.array([null_scores[name] for name in names], np.float64)
    silent = np.array([gold[name] == [""] for name in names], np.float64)
    last = np.append(np.diff(nulls) > 0, True)  # of those that are equal
    found = {}
    for metric, score in SQUAD.items():
        spoken = [score(predictions[name], gold[name]) for name in names]
        totals = silent.sum() + np.cumsum(np.array(spoken) - silent)
        totals = np.append(silent.sum(), np.where(last, totals, -1))
        best = int(np.argmax(totals))
        at = nulls[best - 1] if best else nulls[0] - 1
        found[metric] = (100 * float(totals[best]) / len(names), float(at))
    return found


# ----------------------------------------------------------------------------- texts


def require(how) -> None:
    """Build the metrics of texts, to learn before a search that one of them cannot be had.

    Args:
      how: a `schema.Eval`.

    Raises:
      ValueError: a package is not installed.
    """
    if how.metric == "rouge":
        _rouge_scorer()
    else:
        of_text(how)


def _several(references: Sequence[str | Sequence[str]]) -> list[Sequence[str]]:
    """All references of each text, of which one alone may be given as it is."""
    return [[each] if isinstance(each, str) else each for each in references]


# ------------------------------------------------------------------------- summaries


def sentences(text: str) -> list[str]:
    """A text in sentences, by its line ends and punctuation; a plain rule, not a learned one."""
    found = []
    for line in text.splitlines():
        start = 0
        for end in re.finditer(r"""[.!?]["')\]”’]*\s+(?=["'(\[“‘]*[A-Z0-9#])""", line):
            word = line[start : end.start()].rpartition(" ")[2].lstrip("(")
            if line[end.start()] != "." or not ABBREVIATIONS.fullmatch(word):
                found.append(line[start : end.end()].strip())
                start = end.end()
        found.append(line[start:].strip())
    return [sentence for sentence in found if sentence]


def lead(texts: Sequence[str], n: int = 3) -> list[str]:
    """The first n sentences of each: the summary that others are measured against."""
    return [" ".join(sentences(text)[:n]) for text in texts]


def _rouge_scorer():
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise ValueError(
            f'rouge: {error.name or error} is not installed; pip install "tfx-research[rouge]"'
        ) from None
    return RougeScorer(ROUGE, use_stemmer=True)


def rouge(predictions: Sequence[str], references: Sequence[str | Sequence[str]]) -> list[Row]:
    """F1 of ROUGE-1, 2, L, and L over sentences (Lin, 2004), by Google's `rouge-score`, stemmed:
    means over texts. Of several references, the one that gives the most counts. What L over
    sentences takes for one depends on the rule, which its signature names.

    Raises:
      ValueError: rouge-score is not installed; there is nothing to score.
    """
    scorer, count, several = _rouge_scorer(), _count(predictions, references), _several(references)
    on_lines = lambda text: "\n".join(sentences(text))
    total = dict.fromkeys(ROUGE, 0.0)
    for ours, theirs in zip(predictions, several, strict=True):
        scored = scorer.score_multi([on_lines(one) for one in theirs], on_lines(ours))
        total = {metric: total[metric] + scored[metric].fmeasure for metric in ROUGE}
    counts = {len(theirs) for theirs in several}
    version = f"rouge-score-{importlib.metadata.version('rouge-score')}"
    what = {"n": count, "nrefs": max(counts) if len(counts) == 1 else "var"}
    what |= {"references": "max", "stemmer": "yes"}
    rules = {"rougeLsum": {"sentences": SENTENCES}}
    return [
        _row(metric, total[metric] / count, version, **what, **rules.get(metric, {}))
        for metric in ROUGE
    ]


def summaries(
    predictions: Sequence[str],
    references: Sequence[str | Sequence[str]],
    sources: Sequence[str],
) -> list[Row]:
    """ROUGE, and beside it that of the first sentence and of the first three of each source."""
    rows = rouge(predictions, references)
    for n in (1, 3):
        for row in rouge(lead(sources, n), references):
            # Which sentence is the first depends on the rule, whatever the metric.
            rest = row["signature"].replace(f"|sentences:{SENTENCES}", "")
            signature = f"lead:{n}|sentences:{SENTENCES}|{rest}"
            rows.append(row | {"metric": f"lead{n}_{row['metric']}", "signature": signature})
    return rows


# ------------------------------------------------------------------------------ tags


def spans(tags: Tags) -> set[tuple[int, int, str]]:
    """(first, end, type) of what BIO tags mark, as conlleval reads them: an I- that does not go on
    from the same type begins one."""
    found, start, kind = set(), 0, None
    for at, tag in enumerate([*tags, "O"]):
        mark, _, here = tag.partition("-")
        goes_on = mark == "I" and here == kind
        if kind is not None and not goes_on:
            found.add((start, at, kind))
        if not goes_on:
            start, kind = at, here if mark in ("B", "I") else None
    return found


def tagging(predicted: Sequence[Tags], tags: Sequence[Tags]) -> list[Row]:
    """Accuracy of tags; where they are BIO also precision, recall and F1 of whole spans, type and
    both ends right (Tjong Kim Sang & De Meulder, 2003)."""
    count = _count(predicted, tags)
    for number, (ours, theirs) in enumerate(zip(predicted, tags, strict=True), 1):
        if len(ours) != len(theirs):
            raise ValueError(f"sentence {number:,}: {len(ours)} tags for {len(theirs)} words")
    pairs = [pair for both in zip(predicted, tags, strict=True) for pair in zip(*both, strict=True)]
    _count(pairs, pairs)
    right = sum(ours == theirs for ours, theirs in pairs)
    rows = [_row("accuracy", right / len(pairs), n=len(pairs), of="tags")]
    if not all(tag == "O" or re.match("[BI]-.", tag) for _, tag in pairs):
        return rows
    ours, theirs = (
        {(number, *span) for number, sentence in enumerate(side) for span in spans(sentence)}
        for side in (predicted, tags)
    )
    both, what = len(ours & theirs), {"n": count, "of": "spans", "scheme": "BIO,conlleval"}
    shares = {
        "precision": both / max(len(ours), 1),
        "recall": both / max(len(theirs), 1),
        "f1": _f1(both, len(ours), len(theirs)),
    }
    return rows + [_row(f"span_{metric}", share, **what) for metric, share in shares.items()]


# --------------------------------------------------------------------- language models


def word_perplexity(nll_sum: float, words: int) -> float:
    """Perplexity per word of a text of `nll_sum` nats, whatever its tokens are.

    Args:
      words: of the text split at white space, each line end counted as one more: as Merity et al.
        (2017) count them, for whose models a line end is a word.
    """
    try:
        return math.exp(nll_sum / words)
    except OverflowError:
        return math.inf


def bits_per_character(nll_sum: float, characters: int) -> float:
    """The same in bits, a character."""
    return nll_sum / characters / math.log(2)


# ----------------------------------------------------------------------- translations


def of_text(how) -> dict:
    """The metrics of sacreBLEU (Post, 2018), by the name they have in scores.jsonl.

    `bleu_tok_lc` is what papers before sacreBLEU report: lower-cased, on tokenised text. It is
    not comparable with `bleu`.

    Args:
      how: has `tokenize` and `tokenized`: see `schema.Eval`.

    Raises:
      ValueError: what a tokenizer needs is not installed.
    """
    make = sacrebleu.metrics
    old = "none" if how.tokenized else "13a"
    try:
        first = make.BLEU(tokenize=how.tokenize)
    except (ImportError, RuntimeError):
        language = how.tokenize.partition("-")[0]
        raise ValueError(
            f"eval.tokenize = {how.tokenize}: MeCab or its dictionary is not installed; "
            f'pip install "sacrebleu[{language}]", or set it to char'
        ) from None
    return {
        "bleu": first,
        "chrf": make.CHRF(),
        "ter": make.TER(),
        "bleu_tok_lc": make.BLEU(lowercase=True, tokenize=old, force=True),
    }


def translation(
    how, hypotheses: Sequence[str], references: Sequence[str | Sequence[str]]
) -> list[Row]:
    """BLEU, chrF and TER of translations, each against its reference, or all of its references."""
    rows = []
    for name, metric in of_text(how).items():
        result = _corpus_score(metric, hypotheses, references)
        signature = str(metric.get_signature())
        row = {"metric": name, "score": round(result.score, 4), "signature": signature}
        if name.startswith("bleu"):
            row["detail"] = result.format(signature=False).partition("= ")[2]
        rows.append(row)
    return rows


def bleu(how, hypotheses: Sequence[str], references: Sequence[str | Sequence[str]]) -> float:
    """BLEU of `translation` alone."""
    return _corpus_score(of_text(how)["bleu"], hypotheses, references).score


def _corpus_score(metric, hypotheses, references) -> sacrebleu.metrics.base.Score:
    """Compute `metric.corpus_score` without holding the n-grams of all references at once: from the
    statistics of a few sentences after the other, which sacreBLEU adds up."""
    count, several = _count(hypotheses, references), _several(references)
    statistics, numbers = [], set()
    for start in range(0, count, CHUNK):
        part = slice(start, start + CHUNK)
        streams = list(itertools.zip_longest(*several[part]))  # None: this one has fewer
        statistics += metric._extract_corpus_statistics(hypotheses[part], streams)
        numbers.add(metric.num_refs)
    metric.num_refs = numbers.pop() if len(numbers) == 1 else -1  # -1: signatures say "var"
    return metric._aggregate_and_compute(statistics)
