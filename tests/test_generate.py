import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from tfx import config as configs
from tfx import translate
from tfx.generate import continue_texts
from tfx.train import train

TEXT = "".join(f"{a} sees {b}.\n" for a in "ABCDE" for b in "ABCDE")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpt")
    (folder / "text.txt").write_text(TEXT * 4)
    c = configs.defaults("gpt2", "small", "causal_lm")
    c.model.update(width=16, depth=2, heads=2, mlp=32, max_length=48)
    c.data.update(source="files", train=f"{folder}/text.txt", valid="", max_length=16)
    c.tokenizer.kind, c.objective.whole = "chars", True
    c.batch.tokens, c.eval.every = 256, 0
    c.optim.update(schedule="constant", lr=0.01, warmup=1)
    c.train.update(steps=8, log_every=8)
    train(configs.freeze(c), folder / "run")
    return translate.load(folder / "run")


PROMPTS = ["A sees", "D", "E sees B.\nA", ""]


def test_greedy_continuations_are_the_likeliest_token_again_and_again(run):
    found = continue_texts(run, PROMPTS, length=12, method="greedy")
    score = jax.jit(lambda ids: run.model.apply({"params": run.params}, {"ids": ids}))
    never = [run.tokenizer.special[role] for role in ("pad", "bos")]
    row = np.zeros((1, 24), int)  # what is after a token changes nothing
    for prompt, [hypothesis] in zip(PROMPTS, found, strict=True):
        [ids] = run.tokenizer.encode([prompt or "\n"])
        for _ in range(12):
            row[0, : len(ids)] = ids
            logits = np.array(score(row)[0, len(ids) - 1])
            logits[never] = -np.inf
            ids = [*ids, int(logits.argmax())]
            if ids[-1] == run.tokenizer.special["eos"]:
                break
        assert run.tokenizer.decode([ids]) == [hypothesis.text]


@pytest.mark.parametrize("how", [dict(method="beam", beam=3), dict(method="sample", beam=2)])
def test_a_prompt_goes_on_as_if_it_were_alone(run, how):
    together = continue_texts(run, PROMPTS[:1] * 3, length=8, **how)
    [alone] = continue_texts(run, PROMPTS[:1], length=8, **how)
    assert [each.text for each in together[0]] == [each.text for each in alone]
    assert len(alone) == how["beam"] and all(each.text.startswith("A sees") for each in alone)


def test_what_is_drawn_depends_on_the_seed(run):
    draw = lambda seed: continue_texts(run, ["A"], 20, seed, method="sample", temperature=2.0)
    assert draw(1) == draw(1) != draw(2)


def test_what_does_not_fit_is_refused(run):
    match = r"prompt:1: 6 tokens, the model takes at most 5 \(model.max_length = 48, for 44 more"
    with pytest.raises(ValueError, match=match):
        continue_texts(run, ["A sees"], length=44)
    with pytest.raises(ValueError, match=r"^49 tokens are beyond the model's 48 positions"):
        continue_texts(run, ["A sees"], length=49)
    assert continue_texts(run, ["A sees"], length=43, method="greedy")


@pytest.mark.parametrize("whole", [True, False])
def test_an_empty_prompt_takes_a_token_to_begin_with(run, whole):
    """A line end, or the end of another text; GPT's own vocabulary has neither."""
    objective = dataclasses.replace(run.config.objective, whole=whole)
    run = dataclasses.replace(run, config=dataclasses.replace(run.config, objective=objective))
    assert continue_texts(run, ["A", ""], length=4, method="greedy")
    ids = run.tokenizer
    bare = SimpleNamespace(kind="openai-gpt", special={}, vocab_size=ids.vocab_size)
    bare.encode, bare.decode = lambda lines: ids.encode([s.strip() for s in lines]), ids.decode
    run = dataclasses.replace(run, tokenizer=bare)
    match = r"^prompt 2 is empty, and tokenizer\.kind=openai-gpt has no token to .*; write a word$"
    for prompt in ("", " \n"):
        with pytest.raises(ValueError, match=match):
            continue_texts(run, ["A", prompt])
    for how in (dict(method="greedy"), dict(method="beam", beam=2), dict(method="sample")):
        [found, *_] = continue_texts(run, ["A sees", "D"], length=4, **how)
        assert all(each.text.startswith("A sees") for each in found)


def test_only_a_causal_language_model_goes_on(toy_config, tmp_path):
    train(toy_config({"train.steps": 1, "eval.every": 0}), tmp_path)
    with pytest.raises(ValueError, match=r"no causal language model.*tfx translate$"):
        continue_texts(translate.load(tmp_path), ["A"])
