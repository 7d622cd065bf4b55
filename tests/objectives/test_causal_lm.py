"""Language modelling: what a stream's blocks predict, and how a task goes with it."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tfx.data import examples as data
from tfx.data import vocabulary
from tfx.data.sources import Corpus
from tfx.nn.linear import Product
from tfx.objectives import causal_lm, classify, multiple_choice

RANDOM = np.random.default_rng(0)
STATES_BTD, TABLE_VD = (RANDOM.normal(size=n).astype(np.float32) for n in ((2, 4, 3), (7, 3)))


def nll_BT(states_BTD, targets_BT):
    logits = states_BTD @ TABLE_VD.T
    chosen = np.take_along_axis(logits, targets_BT[..., None], -1)[..., 0]
    return np.log(np.exp(logits).sum(-1)) - chosen


def test_a_block_predicts_its_next_tokens():
    made = causal_lm.make_example([3, 4, 5], seen=1)
    assert {key: x.tolist() for key, x in made.items()} == {
        "ids": [3, 4],
        "mask": [1, 1],
        "targets": [4, 5],
        "weights": [0, 1],
    }
    for ids in ([], [3]):
        with pytest.raises(ValueError, match="2 or more"):
            causal_lm.make_example(ids)


@pytest.mark.parametrize(
    "ids, segments, positions",
    [
        ([0, 5, 6, 0, 7, 8], [1, 1, 1, 2, 2], [0, 1, 2, 0, 1]),
        ([5, 6, 0, 7], [1, 1, 2], [0, 1, 0]),
        ([0, 0, 0], [1, 2], [0, 0]),
    ],
)
def test_documents_of_a_block_can_be_kept_apart(ids, segments, positions):
    made = causal_lm.make_example(ids, separator=0)
    assert made["segments"].tolist() == segments and made["positions"].tolist() == positions
    assert made["weights"].all()  # that a document ends is predicted too


def test_sums_over_tokens_of_weight():
    batch = {
        "targets": np.array([[1, 2, 3, 4], [5, 6, 0, 0]]),
        "weights": np.float32([[1, 1, 1, 1], [0, 1, 0, 0]]),
    }
    outputs = {"logits": Product(jnp.asarray(STATES_BTD), jnp.asarray(TABLE_VD))}
    run = lambda train, **settings: causal_lm.loss(
        lambda *_, **__: outputs, None, batch, None, train, **settings
    )
    total, weight, sums = run(True)
    want = (nll_BT(STATES_BTD, batch["targets"]) * batch["weights"]).sum()
    np.testing.assert_allclose([total, sums["nll"]], [want, want], rtol=1e-6)
    assert weight == 5
    assert run(True, label_smoothing=0.1)[0] != total == run(False, label_smoothing=0.1)[0]


def test_a_task_with_half_the_language_model_beside_it():
    """task + 0.5 LM, where the LM is a mean over a text's tokens and then over texts."""
    batch = {
        "ids": np.array([[1, 2, 3, 4], [5, 6, 0, 0], [0, 0, 0, 0]]),
        "mask": np.array([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]]),
        "label": np.array([1, 0, 0]),
    }
    states_BTD = np.concatenate([STATES_BTD, STATES_BTD[:1]])
    logits_BL = jnp.array([[0.0, 1], [2, 0], [9, 0]])
    calls = []

    def apply(params, batch, rngs, train):
        calls.append(1)
        return {"logits": logits_BL, "lm": Product(params, jnp.asarray(TABLE_VD))}

    loss = causal_lm.with_task(classify.loss)
    run = lambda states: loss(apply, states, batch, None, True)
    total, weight, sums = run(jnp.asarray(states_BTD))
    each = nll_BT(states_BTD[:, :-1], batch["ids"][:, 1:])
    lm = [each[0].mean(), each[1, 0]]
    task = [np.log(1 + np.exp(-1)), np.log(1 + np.exp(-2))]
    np.testing.assert_allclose(total / weight, np.mean(task) + 0.5 * np.mean(lm), rtol=1e-6)
    np.testing.assert_allclose(sums["lm"], sum(lm), rtol=1e-6)
    np.testing.assert_allclose(sums["nll"], sum(task), rtol=1e-6)
    assert weight == 2 and sums["accuracy"] == 2 and len(calls) == 1
    gradient = jax.grad(lambda states: run(states)[0])(jnp.asarray(states_BTD))
    learns = np.abs(gradient).sum(-1) > 0
    assert learns.tolist() == [[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]]


def test_the_language_model_beside_several_choices_is_a_mean_over_texts():
    """ln V where all tokens are as likely, however many choices a row has."""
    batch = {
        "ids": np.ones((2, 4, 3), int),
        "mask": np.ones((2, 4, 3), int),
        "label": np.array([1, 0]),
    }
    lm = Product(jnp.zeros((8, 3, 3)), jnp.asarray(TABLE_VD))
    outputs = {"logits": jnp.zeros((2, 4)), "lm": lm}
    loss = causal_lm.with_task(multiple_choice.loss, 0.5)
    total, weight, sums = loss(lambda *_, **__: outputs, None, batch, None, True)
    assert weight == 2
    np.testing.assert_allclose(sums["lm"] / weight, np.log(7), rtol=1e-6)
    np.testing.assert_allclose(total / weight, np.log(4) + 0.5 * np.log(7), rtol=1e-6)


# Examples of a data set.

CHARS = vocabulary.learn("chars", 0, ["abcdefghij "])
SEP = CHARS.special["eos"]


def examples(folder, *texts, train=False, length=4, vocab=CHARS, **settings):
    corpora = [
        Corpus("toy", lambda lines=lines: iter([(lines,)]), 1.0, "", repr(lines)) for lines in texts
    ]
    given = data.Given(corpora, vocab, folder, train, length, 64)
    found = causal_lm.examples(causal_lm.Config(**settings), given)
    numbers = np.arange(len(found.lengths[0]))
    return found, found.make(numbers, data.Draw(0, 0, 0, numbers, (length,)))


TEXTS = [["abc", "", "defgh", "i"], ["jj", "a"]]


@pytest.mark.parametrize("stride", [0, 1, 3, 4])
@pytest.mark.parametrize("separate", [False, True])
def test_every_token_of_every_text_is_predicted_once(tmp_path, stride, separate):
    _, made = examples(tmp_path, *TEXTS, stride=stride, separate=separate)
    predicted = []
    for block in made:
        seen = np.flatnonzero(block["weights"])
        predicted += block["targets"][seen[0] :].tolist()
        assert block["weights"][seen[0] :].all() and len(block["ids"]) <= 4
        # With a stride, nothing but what the first block of a corpus has is said from little.
        first = block["ids"][0] == SEP and seen[0] == 0
        assert first or not stride or seen[0] == 4 - stride
    ends = "|"  # that a text ends is predicted too
    said = "".join(ends if id == SEP else CHARS.tokens([id])[0] for id in predicted)
    assert said == "abc|defgh|i|" + "jj|a|"


def test_training_has_full_blocks_without_a_stride(tmp_path):
    found, made = examples(tmp_path, TEXTS[0] * 9, train=True, stride=1)
    assert {len(block["ids"]) for block in made} == {4} and found.unit == "blocks"
    assert all(block["weights"].all() for block in made)
    for one, other in itertools.pairwise(made):
        assert one["targets"][-1] == other["ids"][0]  # nothing between is left out


def test_texts_that_are_kept_apart_begin_at_their_separator(tmp_path):
    _, made = examples(tmp_path, TEXTS[0], length=20, separate=True)
    (block,) = made
    assert block["positions"].tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 0, 1]
    assert block["segments"].tolist() == [1] * 4 + [2] * 6 + [3] * 2


def test_whole_files_have_no_separator(tmp_path):
    _, made = examples(tmp_path, TEXTS[0], length=30, whole=True)
    (block,) = made
    assert "".join(CHARS.tokens([block["ids"][0], *block["targets"]])) == "abc\n\ndefgh\ni\n"


@pytest.mark.parametrize(
    "settings, match",
    [
        (dict(separate=True, whole=True), r"objective\.separate: a whole file has no token betw"),
        (dict(stride=5), r"objective\.stride=5: want at most data\.max_length=4"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path, settings, match):
    with pytest.raises(ValueError, match=match):
        examples(tmp_path, TEXTS[0], **settings)


@pytest.mark.parametrize("kind, vocab", [("t5", 116), ("bert", 24), ("xlnet", 22)])
def test_a_whole_file_takes_a_token_for_its_line_ends(tmp_path, kind, vocab):
    learned = vocabulary.learn(kind, vocab, ["alpha beta gamma delta"] * 9)
    match = rf"^objective\.whole: tokenizer\.kind={kind} has no token .*objective\.whole=false, or"
    with pytest.raises(ValueError, match=match):
        examples(tmp_path, TEXTS[0], vocab=learned, whole=True)
    assert examples(tmp_path, TEXTS[0], vocab=learned)


def test_a_model_without_a_language_model_cannot_have_it_beside():
    loss = causal_lm.with_task(classify.loss)
    with pytest.raises(ValueError, match=r"objective\.language = 0\.5: the model has no language"):
        loss(lambda *_, **__: {"logits": 0}, None, {}, None, True)
