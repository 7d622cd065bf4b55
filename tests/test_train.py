import dataclasses
import errno
import gc
import json
import logging
import os
import signal
import threading
import time
import warnings

import jax
import numpy as np
import pytest
from jax.profiler import ProfileData
from jax.sharding import PartitionSpec as P

from tfx import assemble, checkpoint, hosts, lock, metrics, records, sharding
from tfx import train as training
from tfx.schema import Mesh
from tfx.setup import create_state
from tfx.train import train


def final(config, directory, step):
    """Every array of a checkpoint as bytes, by its path."""
    mesh = sharding.make_mesh()
    with jax.set_mesh(mesh), checkpoint.Checkpoints(directory) as saved:
        like = training.put_together(config, directory, mesh, lambda line: None).like
        state, _ = saved.restore(like, step)
    state = state.replace(rng=jax.random.key_data(state.rng))
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in leaves}


NOISY = {"model.dropout": 0.2, "model.attention_dropout": 0.1, "train.steps": 8}


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A function: the workdir of a run that never stopped, made once per config."""
    made = {}

    def run(config):
        if config not in made:
            made[config] = tmp_path_factory.mktemp("straight")
            train(config, made[config])
        return made[config]

    return run


def test_a_run_that_was_stopped_and_resumed_is_the_run_that_never_stopped(
    toy_config, straight, tmp_path
):
    whole = toy_config(NOISY)
    epoch = training.train(
        dataclasses.replace(whole, train=dataclasses.replace(whole.train, steps=3)), tmp_path
    )
    assert epoch["epoch"] % 1 > 0  # in the middle of an epoch
    train(whole, tmp_path)
    assert final(whole, tmp_path, 8) == final(whole, straight(whole), 8)
    rows = lambda where: [(r["step"], r["loss"], r["lr"]) for r in metrics.read(where, "train")]
    assert rows(tmp_path) == rows(straight(whole))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_and_the_run_goes_on_from_there(
    number, toy_config, straight, tmp_path, monkeypatch
):
    config, show = toy_config(NOISY), metrics.Screen.step

    def interrupt(self, step, *rest):
        show(self, step, *rest)
        if step == 5:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(metrics.Screen, "step", interrupt)
    with pytest.raises(hosts.Stopped) as stopped:
        train(config, tmp_path)
    assert stopped.value.signal == number and not (tmp_path / lock.NAME).exists()
    with checkpoint.Checkpoints(tmp_path) as saved:
        assert saved.steps[-1] == 5
    monkeypatch.undo()
    train(config, tmp_path)
    assert final(config, tmp_path, 8) == final(config, straight(config), 8)


def test_a_finished_run_does_nothing_more(toy_config, straight, capsys):
    config = toy_config(NOISY)
    before = final(config, straight(config), 8)
    train(config, straight(config))
    assert "nothing to do" in capsys.readouterr().out
    assert final(config, straight(config), 8) == before


def test_no_program_is_compiled_after_every_shape_was_met(toy_config, tmp_path):
    summary = train(toy_config({"train.steps": 30, "batch.shapes": 3}), tmp_path)
    assert summary["epoch"] > 2
    assert summary["compiled"] <= 3


def test_training_learns(toy_config, tmp_path):
    config = toy_config(
        {"train.steps": 60, "train.log_every": 30, "model.dropout": 0.0, "eval.every": 30}
    )
    train(config, tmp_path)
    losses = [row["nll"] for row in metrics.read(tmp_path, "valid")]
    assert losses[-1] < losses[0] < np.log(40)


def parts_of(config, directory, mesh):
    parts = training.put_together(config, directory, mesh, lambda line: None)
    state = create_state(config, parts.model, parts.tx, parts.shardings)
    loss = assemble.make_loss(config, parts.model)
    return parts, state, training.make_train_step(config, loss, parts.tx, parts.shardings)


def steps(config, directory, mesh, batch, count=4):
    """Losses of a few steps on one batch, and the parameters after them."""
    with jax.set_mesh(mesh):
        _, state, step = parts_of(config, directory, mesh)
        losses = []
        for _ in range(count):
            state, sums = step(state, sharding.put_batch(batch, mesh))
            losses.append(float(sums["loss"] / sums["weight"]))
        return losses, jax.device_get(state)


@pytest.fixture
def batch(toy_config, tmp_path):
    config, mesh = toy_config(), sharding.make_mesh()
    with jax.set_mesh(mesh):
        parts = training.put_together(config, tmp_path, mesh, lambda line: None)
    return parts.batches.batch(0)


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param(dict(fsdp=8, data=1), marks=pytest.mark.slow),
        dict(fsdp=2, tensor=2),
        pytest.param(dict(tensor=2, sequence=2), marks=pytest.mark.slow),
    ],
)
def test_every_mesh_gives_the_same_run(toy_config, tmp_path, batch, shape):
    # Not Adam: it blows up rounding noise where a gradient is zero (the keys' biases).
    config = toy_config(
        {"model.dropout": 0.2, "optim.ema": 0.9, "optim.name": "sgd", "optim.lr": 0.1}
    )
    one, one_state = steps(config, tmp_path, sharding.make_mesh(), batch)
    other, other_state = steps(config, tmp_path, sharding.make_mesh(**shape), batch)
    np.testing.assert_allclose(one, other, rtol=1e-5)
    for a, b in zip(*map(jax.tree.leaves, (one_state.params, other_state.params)), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_accumulated_micro_batches_are_one_large_batch(toy_config, tmp_path, batch):
    mesh, plain = (
        sharding.make_mesh(data=4, tensor=2),
        toy_config({"model.dropout": 0.0, "optim.name": "sgd", "optim.lr": 0.1}),
    )
    parts = dataclasses.replace(plain, train=dataclasses.replace(plain.train, accum=2))
    assert len(batch["source"]) % 8 == 0
    whole, whole_state = steps(plain, tmp_path, mesh, batch)
    split, split_state = steps(parts, tmp_path, mesh, batch)
    np.testing.assert_allclose(whole, split, rtol=1e-5)
    for a, b in zip(*map(jax.tree.leaves, (whole_state.params, split_state.params)), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_optimiser_state_lies_where_its_parameters_lie(toy_config, tmp_path):
    config, mesh = toy_config({"optim.name": "adafactor"}), sharding.make_mesh(fsdp=4, tensor=2)
    with jax.set_mesh(mesh):
        parts, state, _ = parts_of(config, tmp_path, mesh)
        assert parts.like.params["target_embed"]["embedding"].sharding.spec == P("tensor", "fsdp")
        adam = toy_config({"optim.name": "adamw", "optim.weight_decay": 0.1})
        parts, state, _ = parts_of(adam, tmp_path, mesh)
        moments = [x for x in jax.tree.leaves(state.opt_state) if x.shape == (40, 16)]
        assert len(moments) == 2
        assert all(m.sharding.spec == P("tensor", "fsdp") for m in moments)


def test_the_moving_average_is_what_its_formula_says(toy_config, tmp_path, batch):
    mesh, decay = sharding.make_mesh(), 0.75
    config = toy_config({"optim.ema": decay})
    with jax.set_mesh(mesh):
        _, state, step = parts_of(config, tmp_path, mesh)
        ema = jax.device_get(state.params)
        for _ in range(3):
            state, _ = step(state, sharding.put_batch(batch, mesh))
            ema = jax.tree.map(
                lambda e, p: decay * e + (1 - decay) * np.asarray(p), ema, state.params
            )
        for a, b in zip(*map(jax.tree.leaves, (ema, state.weights)), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)


def test_early_stopping_waits_for_as_many_evaluations_as_it_was_told(toy_config, tmp_path, capsys):
    frozen = {"optim.lr": 1e-30, "eval.every": 2, "eval.patience": 2, "train.steps": 100}
    summary = train(toy_config(frozen), tmp_path)
    assert summary["step"] == 6  # the first evaluation is a gain, the next two are not
    assert "stopping early" in capsys.readouterr().out


def test_what_is_kept(toy_config, tmp_path):
    rules = {"every": 2, "keep_last": 2, "keep_best": 1, "keep_every": 6}
    overrides = {f"checkpoint.{k}": v for k, v in rules.items()} | {
        "train.steps": 16,
        "eval.every": 4,
    }
    train(toy_config(overrides | {"optim.lr": 0.02}), tmp_path)
    with checkpoint.Checkpoints(tmp_path, 2, 1, 6) as saved:
        losses = {row["step"]: row["nll"] for row in metrics.read(tmp_path, "valid")}
        best = min(losses, key=losses.get)
        assert set(saved.steps) == {14, 16, 6, 12} | {best}
        assert saved.best(1) == [best]


def test_a_diverging_run_says_so_and_saves_nothing_bad(toy_config, tmp_path):
    config = toy_config({"optim.name": "sgd", "optim.lr": 1e30, "checkpoint.every": 1})
    with pytest.raises(training.Diverged, match=r"within steps \d+ to \d+; lower optim.lr"):
        train(config, tmp_path)
    with checkpoint.Checkpoints(tmp_path) as saved:
        steps = saved.steps
    kept = final(config, tmp_path, steps[-1]) if steps else {}
    assert all(
        np.isfinite(np.frombuffer(v, np.float32)).all() for k, v in kept.items() if "params" in k
    )


def test_starting_from_the_weights_of_another_run(toy_config, straight, tmp_path):
    old = toy_config(NOISY)
    new = toy_config({"init_from": str(straight(old)), "train.steps": 1, "optim.lr": 1e-30})
    train(new, tmp_path)
    params = lambda *of: {k: v for k, v in final(*of).items() if k.startswith(".params")}
    assert params(new, tmp_path, 1) == params(old, straight(old), 8)


def test_changed_training_text_is_refused(toy_config, toy, tmp_path):
    text = tmp_path / "text"
    text.mkdir()
    for side in "ab":
        (text / f"t.{side}").write_text((toy / f"train.{side}").read_text())
    config = toy_config({"data.train": f"{text}/t.a,{text}/t.b"})
    train(config, tmp_path / "run")
    with (text / "t.a").open("a") as a, (text / "t.b").open("a") as b:
        a.write("red one\n")
        b.write("one red\n")
    longer = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=9))
    with pytest.raises(ValueError, match="training data changed"):
        train(longer, tmp_path / "run")


def test_a_start_whose_text_is_not_there_leaves_no_workdir_behind(toy_config, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        train(toy_config({"data.train": "missing.a,missing.b"}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def traced(directory):
    """The numbers of the steps in a profile, and the names of all events in it."""
    [path] = directory.glob("profile/plugins/profile/*/*.xplane.pb")
    lines = [line for plane in ProfileData.from_file(str(path)).planes for line in plane.lines]
    events = [event for line in lines for event in line.events]
    with warnings.catch_warnings():  # jaxlib 0.12 aborts where its own warning is an error
        warnings.simplefilter("ignore")
        steps = [dict(event.stats)["step_num"] for event in events if event.name == "step"]
    return sorted(steps), {event.name for event in events}


def test_a_profile_holds_the_program_of_its_steps_and_no_save(toy_config, tmp_path, capsys):
    train(toy_config(), tmp_path, profile=(2, 4))  # and saves step 4
    steps, names = traced(tmp_path)
    assert steps == [2, 3, 4]
    assert any("train_step" in name for name in names)
    path = f"{tmp_path}/profile"
    assert f"is in {path}; pip install xprof; xprof --logdir={path}" in capsys.readouterr().out


def test_a_signal_ends_a_profile_before_it_saves(toy_config, tmp_path, monkeypatch):
    show = metrics.Screen.step

    def interrupt(self, step, *rest):
        show(self, step, *rest)
        if step == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(metrics.Screen, "step", interrupt)
    with pytest.raises(hosts.Stopped):
        train(toy_config(), tmp_path, profile=(5, 8))
    assert traced(tmp_path)[0] == [5, 6]


def test_dry_run_prints_parameters_shapes_and_memory_and_trains_nothing(
    toy_config, capsys, tmp_path
):
    training.dry_run(toy_config(), tmp_path)
    out = capsys.readouterr().out
    for word in (
        "target_embed/embedding",
        "batch['source']",
        "memory a device",
        "nothing was trained",
    ):
        assert word in out
    assert not any(tmp_path.iterdir())  # a tokenizer of another config would be taken up


def test_a_screen_says_what_tfx_logs_and_nobody_else(capsys):
    log = logging.getLogger("tfx")
    with metrics.Screen(1):
        log.info("attention kernel: %s", "xla")
        logging.getLogger("jax").info("noise")
        logging.getLogger("tfx.more").debug("detail")
    with metrics.Screen(1, quiet=True):
        log.info("on another process")
    log.info("later")
    assert capsys.readouterr().out == "attention kernel: xla\n"


def test_metrics_are_one_history(tmp_path):
    with metrics.Writer(tmp_path, 0) as writer:
        for step in (1, 2, 3):
            writer.write(step, "train", loss=float(step))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "spl')  # the process died here
    with metrics.Writer(tmp_path, 2) as writer:
        writer.write(3, "train", loss=30.0)
    assert [row["loss"] for row in metrics.read(tmp_path)] == [1.0, 2.0, 30.0]
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])["split"] == "train"


def test_mesh_defaults_agree():
    assert dataclasses.asdict(Mesh()) == dict(data=-1, fsdp=1, tensor=1, sequence=1)


@pytest.fixture
def at_step(monkeypatch):
    """A function: have something done when a step is shown."""

    def when(number, act):
        show = metrics.Screen.step

        def shown(self, step, *rest):
            show(self, step, *rest)
            if step == number:
                act()

        monkeypatch.setattr(metrics.Screen, "step", shown)

    return when


def test_a_full_disk_under_the_by_products_stops_no_training(
    toy_config, straight, tmp_path, monkeypatch, capsys, at_step
):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    config = toy_config(NOISY)
    at_step(3, lambda: monkeypatch.setattr(records.Log, "append", full))
    train(config, tmp_path)
    said = capsys.readouterr().out
    assert said.count("No space left on device") == 2 and "step 8/8" in said
    assert [row["step"] for row in metrics.read(tmp_path)] == [1, 2, 3]
    assert final(config, tmp_path, 8) == final(config, straight(config), 8)


def test_a_run_holds_the_lock_of_its_workdir_and_gives_it_back(toy_config, tmp_path, at_step):
    seen = []

    def look():
        with pytest.raises(lock.Held) as caught:
            train(toy_config({"train.steps": 2}), tmp_path)
        seen.append(str(caught.value))

    at_step(1, look)
    train(toy_config({"train.steps": 2}), tmp_path)
    assert f"tfx train (process {os.getpid()} on host" in seen[0] and len(seen) == 1
    assert not (tmp_path / lock.NAME).exists()
    assert len((tmp_path / "starts.jsonl").read_text().splitlines()) == 1
    with pytest.raises(ValueError, match="holds another run"):
        train(toy_config({"seed": 5}), tmp_path)
    assert not (tmp_path / lock.NAME).exists()


def test_a_run_that_was_taken_over_saves_nothing_more(toy_config, tmp_path, at_step):
    theirs = json.dumps({"host": "far", "pid": 1, "token": "theirs", "verb": "train"})
    at_step(6, lambda: (tmp_path / lock.NAME).write_text(theirs))
    with pytest.raises(lock.Held, match=r"on host far.* has taken over"):
        train(toy_config(), tmp_path)
    with checkpoint.Checkpoints(tmp_path) as saved:
        assert saved.steps == [4]
    assert (tmp_path / lock.NAME).read_text() == theirs


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"optim.name": "adm"}, "no optimiser of optax; did you mean adam"),
        ({"optim.frozen": "nothing/there"}, "matches no parameter"),
        ({"mesh.data": 1, "mesh.tensor": 8}, "does not divide"),
        ({"mesh.data": 3}, "does not cover the 8 devices"),
    ],
)
def test_what_needs_no_text_to_be_known_is_refused_before_it_is_read(
    changes, message, toy_config, tmp_path, monkeypatch
):
    monkeypatch.setattr(assemble, "open_tokenizer", lambda *_: pytest.fail("it was read"))
    for start in (lambda: train(toy_config(changes), tmp_path / "run"),
                  lambda: training.dry_run(toy_config(changes))):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            start()
    assert not (tmp_path / "run").exists()


def test_a_vocabulary_that_is_not_known_yet_is_no_reason_to_refuse_a_mesh(toy_config):
    """8 devices do not divide 41 rows, but a tokenizer may come to have fewer."""
    mesh = sharding.make_mesh(tensor=2)
    training.check(toy_config({"tokenizer.vocab": 41}), mesh)
    with pytest.raises(sharding.Misfit, match="vocabulary 41"):
        training.check(toy_config({"model.vocab": 41}), mesh)


def test_a_run_leaves_no_threads_and_no_open_files(toy_config, tmp_path):
    count = lambda: (threading.active_count(), len(os.listdir("/proc/self/fd")))
    counts = []
    for n in range(3):
        changes = {"train.steps": 6, "checkpoint.every": 1, "eval.every": 3}
        train(toy_config(changes), tmp_path / f"{n}")
        gc.collect()
        time.sleep(0.2)
        counts.append(count())
    assert counts[2][0] <= counts[0][0] and counts[2][1] <= counts[0][1] + 1, counts
