"""Every objective with every family that it fits: its batches, and that it trains from a config."""

import dataclasses
import functools
import itertools
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from tfx import assemble, checkpoint, models, pretrained, sharding
from tfx import config as configs
from tfx import train as training
from tfx.data import exercises, sources, vocabulary
from tfx.models import bert
from tfx.objectives import OBJECTIVES
from tfx.setup import create_state

SIZES = {"bert": 400, "roberta": 400, "gpt2": 400, "t5": 400, "xlnet": 400}  # pieces
BERTS = ("bert", "roberta", "distilbert")
ONE_TEXT = (*BERTS, "gpt2", "xlnet")
ROW = {"data.max_length": 64, "data.truncate": True}
PAIRED = {"model.head": "pretraining", "objective.copies": 2}
CLASSES = {"objective.labels": ",".join(exercises.CLASSES), "model.head": "classify"}
QUESTIONS = {"objective.no_answer": True, "objective.stride": 24, "data.max_length": 96}
# Name: objective, families, and what is set.
CASES = {
    "seq2seq": ("seq2seq", ("t5",), {}),
    "text_to_text": ("text_to_text", ("t5",), {"objective.prefix": "translate: "}),
    "span_corruption": ("span_corruption", ("t5",), {}),
    "causal_lm": ("causal_lm", ("gpt2",), {}),
    "causal_lm apart": ("causal_lm", ("gpt2",), {"objective.separate": True}),
    "masked_lm": ("masked_lm", BERTS, {"objective.whole_words": True}),
    "masked_lm next": ("masked_lm", BERTS, PAIRED | {"objective.pairs": "next"}),
    "masked_lm order": ("masked_lm", BERTS, PAIRED | {"objective.pairs": "order"}),
    "permutation_lm": ("permutation_lm", ("xlnet",), {"objective.memory": 8}),
    "classify": ("classify", (*ONE_TEXT, "t5"), CLASSES),
    "classify beside": ("classify", ("gpt2",), CLASSES | {"objective.language": 0.5}),
    "regress": ("regress", (*ONE_TEXT, "t5"), {"model.head": "classify", "model.classes": 1}),
    "tag": (
        "tag",
        (*ONE_TEXT, "t5"),
        {"objective.labels": ",".join(exercises.TAGS), "model.head": "tokens"}
        | {"model.classes": len(exercises.TAGS)},
    ),
    "multiple_choice": (
        "multiple_choice",
        ONE_TEXT,
        {"model.head": "choice", "data.max_length": 128},
    ),
    "span_qa": ("span_qa", (*BERTS, "xlnet"), QUESTIONS | {"model.head": "span"}),
    "span_qa beam": ("span_qa", ("xlnet",), QUESTIONS | {"model.head": "beam"}),
}
TEACHERS = {"distill": "mlm", "distill_task": "classify"}
CASES |= {
    "distill": ("distill", ("distilbert",), {}),
    "distill_task": ("distill_task", ("distilbert",), CLASSES),
}
HEADS = {"causal_lm": "causal", "masked_lm": "mlm", "permutation_lm": "lm"}
SIZE = {"gpt2": "small", "t5": "small"}
ALL = [(name, family) for name, (_, families, _) in CASES.items() for family in families]
QUICK = [
    ("permutation_lm", "xlnet"),
    ("multiple_choice", "gpt2"),
    ("span_qa", "distilbert"),
    ("distill", "distilbert"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Tokenizers as Hugging Face keeps them, one a family, and sentences with a number."""
    place = tmp_path_factory.mktemp("given")
    (corpus,) = sources.open_split("synthetic", "valid", "", "valid", "text")
    text = [line for (chunk,) in corpus.chunks() for line in chunk if line][:400]
    for family, size in SIZES.items():
        learned = vocabulary.learn(family, size, text)
        (place / family).mkdir()
        for name, content in learned.files.items():
            (place / family / name).write_bytes(content)
        (place / family / "config.json").write_text(f'{{"model_type": "{family}"}}')
    rows = [f"{line}\t{len(line) / 10}\n" for line in text[:120]]
    (place / "numbers.tsv").write_text("".join(rows))
    for head in TEACHERS.values():
        teacher(place, place / head, head=head)
    return place


def teacher(place, where, **settings):
    """A BERT that nobody has trained, as Hugging Face keeps it."""
    ids, rng = vocabulary.of_folder(place / "bert"), np.random.default_rng(0)
    shape = {"width": 16, "depth": 2, "heads": 2, "mlp": 32, "vocab": ids.vocab_size}
    model = models.build(bert.Config(**shape | settings))
    draw = lambda like: rng.normal(size=like.shape).astype(np.float32) / 4
    params = jax.tree.map(draw, nn.unbox(models.shapes(model)))
    pretrained.write(where, model, params, ids.files)
    return where


def config_of(folder, name, family, **changes):
    objective, _, settings = CASES[name]
    config = configs.tiny(configs.defaults(family, SIZE.get(family, "base"), objective))
    config.optim.update(name="sgd", lr=0.1, schedule="constant")
    config.batch.update(tokens=256, shapes=1)
    config.tokenizer.path = str(folder / family.removeprefix("distil"))
    config.eval.every = 0
    if "head" in config.model:
        config.model.head = HEADS.get(objective, config.model.head)
    if objective in TEACHERS:
        config.objective.teacher = str(folder / TEACHERS[objective])
    if objective == "regress":
        numbers = str(folder / "numbers.tsv")
        config.data.update(source="files", train=numbers, valid=numbers)
    for key, value in (ROW | settings | changes).items():
        section, _, leaf = key.rpartition(".")
        config[section][leaf] = value
    return configs.freeze(config)


def named(case):
    return "-".join(case).replace(" ", "_")


def test_no_objective_is_left_out():
    assert OBJECTIVES.keys() == {objective for objective, _, _ in CASES.values()}


# Batches.


def opened(config, where, split="train", **more):
    ids = assemble.open_tokenizer(config, where)
    return assemble.open_batches(config, ids, where, split, **{"multiple": 2} | more)


def same(one, other):
    assert one.keys() == other.keys()
    for key, x in one.items():
        assert x.dtype == other[key].dtype, key
        np.testing.assert_array_equal(x, other[key], err_msg=key)


FIRST = [(name, families[0]) for name, (_, families, _) in CASES.items()]


@pytest.mark.parametrize("case", FIRST, ids=named)
def test_batches_depend_on_the_step_alone_and_are_cut_up_by_rows(folder, tmp_path, case):
    config = config_of(folder, *case)
    batches = opened(config, tmp_path, parts=8)  # two rows or more, filled up to eight
    again = opened(config, tmp_path, parts=8)
    epoch = batches.steps_per_epoch
    steps = (0, 1, epoch - 1, epoch, 3 * epoch + 1)
    whole = {step: batches.batch(step) for step in steps}
    for step in reversed(steps):
        same(again.batch(step), whole[step])
        rows = batches.rows(step)
        assert rows % 8 == 0 and {len(x) for x in whole[step].values()} == {rows}
        cuts = [0, 1, rows // 2, rows - 1, rows]
        parts = [again.batch(step, slice(a, b)) for a, b in itertools.pairwise(cuts)]
        joined = {key: np.concatenate([part[key] for part in parts]) for key in whole[step]}
        same(joined, whole[step])
    key = "ids" if "ids" in whole[0] else "source"
    assert not np.array_equal(whole[0][key], whole[1][key])
    assert len({x.tobytes() for x in (whole[0][key], whole[epoch][key])}) == 2


@pytest.mark.parametrize("case", FIRST, ids=named)
def test_evaluation_meets_every_example_once(folder, tmp_path, case):
    batches = opened(config_of(folder, *case), tmp_path, "valid", parts=8)
    every = [batches.batch(step) for step in range(batches.steps_per_epoch)]
    index = np.concatenate([batch["index"] for batch in every])
    assert sorted(index[index >= 0]) == list(range(batches.examples_per_epoch))
    for batch in every:
        filler = batch["index"] < 0
        for key, x in batch.items():
            assert key == "index" or not x[filler].any(), key
        there = next(batch[key] for key in ("mask", "weights") if key in batch)
        assert (there.reshape(len(there), -1).any(-1) == ~filler).all()


# One step, in whatever way its batch is computed.


@functools.cache
def one_step(config, where, data=1):
    """A function of a batch: the sums and the parameters after a step on so many devices."""
    mesh = sharding.make_mesh(data=data, devices=jax.devices()[:data])
    with jax.set_mesh(mesh):
        parts = training.put_together(config, Path(where), mesh, lambda line: None)
        step = training.make_train_step(config, parts.loss, parts.tx, parts.shardings)
        first = create_state(config, parts.model, parts.tx, parts.shardings)

    def run(batch):
        with jax.set_mesh(mesh):
            state = jax.tree.map(jnp.copy, first)  # for a step takes it
            state, sums = step(state, sharding.put_batch(batch, mesh), parts.frozen)
            return jax.device_get((sums, state.params))

    return run


def alike(one, other):
    (sums, params), (others, other_params) = one, other
    assert sums.keys() == others.keys()
    for key, value in sums.items():
        # In float32 a gradient that almost cancels has no more than its first digits.
        np.testing.assert_allclose(value, others[key], rtol=2e-5, atol=1e-8, err_msg=key)
    for a, b in zip(*map(jax.tree.leaves, (params, other_params)), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)


ALIKE = [
    ("permutation_lm", "xlnet"),
    ("multiple_choice", "bert"),
]
QUIET = {"model.dropout": 0.0, "model.attention_dropout": 0.0, "model.mlp_dropout": 0.0} | {
    "model.head_dropout": 0.0,
    "model.embedding_dropout": 0.0,
    "model.pooler_dropout": 0.0,
}


@pytest.mark.parametrize(
    "case",
    [
        *ALIKE,
        *(pytest.param(case, marks=pytest.mark.slow) for case in FIRST if case not in ALIKE),
    ],
    ids=named,
)
def test_filler_rows_accumulation_and_devices_change_nothing(folder, tmp_path, case):
    known = dataclasses.asdict(config_of(folder, *case).model)
    quiet = {key: value for key, value in QUIET.items() if key.partition(".")[2] in known}
    config = config_of(folder, *case, **quiet)
    batch = {key: x[:8] for key, x in opened(config, tmp_path, multiple=8).batch(0).items()}
    alone = one_step(config, str(tmp_path))(batch)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(alone))
    filled = {key: np.concatenate([x, np.zeros_like(x)]) for key, x in batch.items()}
    alike(one_step(config, str(tmp_path))(filled), alone)
    if case[0] in ("masked_lm next", "masked_lm order", "classify beside"):
        return  # a sum of means over different things, each part's by itself: losses.sum_of_means
    split = dataclasses.replace(config, train=dataclasses.replace(config.train, accum=2))
    alike(one_step(split, str(tmp_path), data=4)(batch), alone)


# The whole journey.


@pytest.fixture
def saved(monkeypatch):
    """The bytes of every state that is saved, by its step."""
    found, save = {}, checkpoint.Checkpoints.save

    def keep(self, state, *rest):
        plain = jax.device_get(state.replace(rng=jax.random.key_data(state.rng)))
        leaves = jax.tree_util.tree_leaves_with_path(plain)
        found[int(state.step)] = {jax.tree_util.keystr(path): x.tobytes() for path, x in leaves}
        save(self, state, *rest)

    monkeypatch.setattr(checkpoint.Checkpoints, "save", keep)
    return found


def interrupted(config, where, saved):
    """Train, then again from step 2, as if it had been stopped there."""
    summary = training.train(config, where)
    straight = dict(saved)
    shutil.rmtree(where / "checkpoints" / "4")
    saved.clear()
    training.train(config, where)
    assert saved.keys() == {4} and straight.keys() == {2, 4}
    assert saved[4] == straight[4] != straight[2]
    return summary


@pytest.mark.parametrize(
    "case",
    [
        *QUICK,
        *(pytest.param(case, marks=pytest.mark.slow) for case in ALL if case not in QUICK),
    ],
    ids=named,
)
def test_a_resumed_run_is_the_run_that_never_stopped(folder, tmp_path, saved, case):
    config = config_of(folder, *case, **{"train.steps": 4, "optim.name": "adam", "optim.lr": 1e-3})
    summary = interrupted(config, tmp_path, saved)
    assert np.isfinite(summary["loss"]) and summary["step"] == 4


# Teachers.


@pytest.mark.parametrize("name", ["distill", pytest.param("distill_task", marks=pytest.mark.slow)])
def test_a_teacher_never_moves(folder, tmp_path, name):
    config, mesh = config_of(folder, name, "distilbert"), sharding.make_mesh()
    wanted = pretrained.read(config.objective.teacher).params
    with jax.set_mesh(mesh):
        parts = training.put_together(config, tmp_path, mesh, lambda line: None)
        step = training.make_train_step(config, parts.loss, parts.tx, parts.shardings)
        state = create_state(config, parts.model, parts.tx, parts.shardings)
        before = jax.device_get(state.params)
        for number in range(2):
            state, sums = step(state, assemble.fetch(parts.batches, number, mesh), parts.frozen)
        assert sums["divergence"] > 0 and np.isfinite(sums["loss"])
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(parts.frozen), wanted)
        moved = jax.tree.map(
            lambda a, b: bool((a != b).any()), before, jax.device_get(state.params)
        )
        assert moved["embed"]["embedding"]


@pytest.mark.parametrize(
    "name, settings, match",
    [
        ("distill", {"head": "classify"}, "predict masked tokens; name one of model.head mlm or"),
        ("distill", {"width": 32}, "is 32 wide, the model 16; set objective.cosine = 0, or model"),
        pytest.param(
            *(
                "distill",
                {"vocab": 448},
                "has 448 rows of vocabulary, the model 400; set model.voc",
            ),
            marks=pytest.mark.slow,
        ),
        ("distill_task", {"classes": 3}, "tells 3 classes apart, the model 2; name a classifier"),
    ],
)
def test_a_teacher_of_another_kind_is_refused(folder, tmp_path, name, settings, match):
    place = teacher(folder, tmp_path / "teacher", **{"head": TEACHERS[name]} | settings)
    config = config_of(folder, name, "distilbert", **{"objective.teacher": str(place)})
    with pytest.raises(ValueError, match=match) as raised:
        training.train(config, tmp_path / "run")
    assert "\n" not in str(raised.value)


def test_a_teacher_that_reads_other_ids_or_is_not_there(folder, tmp_path):
    config = config_of(folder, "distill", "distilbert")
    change = functools.partial(dataclasses.replace, config.objective)
    for name, match in (
        ("", r'objective\.teacher = "": name a workdir, or a folder'),
        (str(tmp_path / "nowhere"), "neither a workdir with a checkpoint nor a folder"),
    ):
        wrong = dataclasses.replace(config, objective=change(teacher=name))
        with pytest.raises((ValueError, FileNotFoundError), match=match):
            training.train(wrong, tmp_path / f"run {len(name)}")
    place = teacher(folder, tmp_path / "teacher", head="mlm")
    other = (place / "vocab.txt").read_text().splitlines()
    other[-2:] = reversed(other[-2:])
    (place / "vocab.txt").write_text("".join(f"{piece}\n" for piece in other))
    wrong = dataclasses.replace(config, objective=change(teacher=str(place)))
    with pytest.raises(ValueError, match=r"it reads other ids; set tokenizer\.path to it"):
        training.train(wrong, tmp_path / "run")
