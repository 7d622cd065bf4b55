"""A run of several processes, which talk over the loopback interface as hosts do over theirs."""

import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from tfx import checkpoint, hosts, metrics, sharding, workdir
from tfx import train as training

TFX = "from tfx.main import main; sys.exit(main(sys.argv[2:]))"

# Prints what a checkpoint holds, and which rows of a batch lie here and arrive.
LOOK = """
import hashlib, json
from pathlib import Path
import jax, numpy as np
from jax.experimental import multihost_utils
from tfx import assemble, checkpoint, hosts, sharding, workdir
from tfx import train as training
directory, where, number, count = sys.argv[2:]
hosts.join("on", where, int(count), int(number))
config, every = workdir.read_config(directory), jax.devices()
across = [device for pair in zip(every[:4], every[4:]) for device in pair]
report = {}
for name, shape in {"fsdp": dict(fsdp=8, data=1), "across": dict(tensor=2, devices=across)}.items():
    mesh = sharding.make_mesh(**shape)
    with jax.set_mesh(mesh), checkpoint.Checkpoints(directory) as saved:
        parts = training.put_together(config, Path(directory), mesh, lambda line: None)
        state, _ = saved.restore(parts.like)
        state = state.replace(rng=jax.random.key_data(state.rng))
        state = multihost_utils.process_allgather(state, tiled=True)
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves(state):
            digest.update(np.asarray(leaf).tobytes())
        rows, whole = parts.batches.rows(0), parts.batches.batch(0)
        placed = assemble.fetch(parts.batches, 0, mesh)
        placed = multihost_utils.process_allgather(placed, tiled=True)
        same = all((placed[key] == whole[key]).all() for key in whole)
        here = sharding.rows_here(rows, mesh).tolist()
        report[name] = {"state": digest.hexdigest(), "same": same, "rows": here, "of": rows}
print(json.dumps(report))
"""


def launch(count, devices, code, *words, each=lambda number, where: ()):
    """Start processes that run `code`; `each` gives further words for one of them."""
    with socket.create_server(("", 0)) as server:
        where = f"127.0.0.1:{server.getsockname()[1]}"
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    begin = f"""
import sys, jax
jax.config.update("jax_num_cpu_devices", int(sys.argv[1]))
{code}"""
    command = lambda n: [sys.executable, "-c", begin, devices, *words, *each(n, where)]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    return [
        subprocess.Popen([str(word) for word in command(number)], **pipes)
        for number in range(count)
    ]


def ended(processes, timeout=300):
    """(exit code, stdout, stderr) of each."""
    try:
        outputs = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(p.returncode, *output) for p, output in zip(processes, outputs, strict=True)]


def flags(count):
    return lambda number, where: (
        f"--coordinator={where}",
        f"--num_processes={count}",
        f"--process_id={number}",
    )


@pytest.fixture
def words(toy):
    """The command that trains on the toy corpus."""
    text = lambda split: f"{toy}/{split}.a,{toy}/{split}.b"
    config = {
        "data.source": "files",
        **{f"data.{split}": text("train" if split == "train" else "valid") for split in TEXTS},
        **{"tokenizer.vocab": 40, "model.dropout": 0.2, "train.watchdog": 120, "decode.extra": 4},
        **{"optim.lr": 0.1, "optim.schedule": "constant", "optim.name": "sgd"},
    }

    def make(where, **more):
        changed = config | {key.replace("__", "."): value for key, value in more.items()}
        overrides = [f"--config.{key}={value}" for key, value in changed.items()]
        return ["train", "--config=quickstart:tiny", f"--workdir={where}", *overrides]

    return make


TEXTS = ("train", "valid", "test")


def digest(directory, shape):
    """sha256 of a whole checkpoint, restored by this process onto a mesh."""
    mesh, found = sharding.make_mesh(**shape), hashlib.sha256()
    with jax.set_mesh(mesh), checkpoint.Checkpoints(directory) as saved:
        config = workdir.read_config(directory)
        parts = training.put_together(config, directory, mesh, lambda line: None)
        state, _ = saved.restore(parts.like)
    for leaf in jax.tree.leaves(state.replace(rng=jax.random.key_data(state.rng))):
        found.update(np.asarray(leaf).tobytes())
    return found.hexdigest()


def test_processes_with_other_configs_all_refuse_to_start(words, tmp_path):
    each = lambda n, where: (*flags(2)(n, where), f"--config.seed={n + 3}")
    for code, _, error in ended(launch(2, 1, TFX, *words(tmp_path / "run"), each=each)):
        assert code == 2, error
        assert "error: the processes differ: seed is 3 on process 0 and 4 on process 1" in error
    assert not (tmp_path / "run").exists()


def test_a_workdir_that_is_not_shared_is_refused(words, tmp_path):
    each = lambda n, where: (*flags(2)(n, where), f"--workdir={tmp_path / str(n)}")
    for code, _, error in ended(launch(2, 1, TFX, *words(tmp_path), each=each)):
        assert code == 2, error
        assert "one directory, shared by all of them" in error


HALF = """
from tfx.config import tiny
from tfx.start import start_from

def get_config(place):
    c = tiny(start_from(place, "distill_task"))
    c.model.classes, c.objective.teacher, c.tokenizer.path = 2, place, place
    return c
"""


@pytest.mark.slow
def test_two_processes_read_their_teacher_together(tmp_path):
    teacher, recipe = tmp_path / "teacher", tmp_path / "half.py"
    recipe.write_text(HALF)
    taught = ["train", "--config=sst2:tiny", f"--workdir={teacher}"]
    [(code, _, error)] = ended(launch(1, 1, TFX, *taught))
    assert code == 0, error
    student = ["train", f"--config={recipe}:{teacher}", f"--workdir={tmp_path / 'student'}"]
    for code, out, error in ended(launch(2, 1, TFX, *student, each=flags(2))):
        assert code == 0, out + error
    assert workdir.progress(tmp_path / "student")[0] == 2


def wait_for(run, step, processes):
    """Until a checkpoint of that step, or a later one, is there."""
    while workdir.progress(run)[0] < step and all(each.poll() is None for each in processes):
        time.sleep(0.1)


@pytest.mark.slow
def test_one_signal_saves_and_a_second_one_leaves_at_once_though_the_other_process_hangs(
    words, tmp_path
):
    run, more = tmp_path / "run", dict(eval__every=0, checkpoint__every=5)
    start = lambda: launch(2, 1, TFX, *words(run, **more, train__steps=9999), each=flags(2))
    processes = start()
    wait_for(run, 5, processes)
    processes[0].send_signal(signal.SIGINT)
    results = ended(processes)
    for code, out, error in results:
        assert code == 130, out + error
    assert len({re.search("stopped by SIGINT after saving step.*", r[2])[0] for r in results}) == 1
    saved = workdir.progress(run)[0]

    processes = start()
    wait_for(run, saved + 5, processes)
    processes[1].send_signal(signal.SIGSTOP)
    time.sleep(1)
    for _ in range(2):
        assert processes[0].poll() is None
        processes[0].send_signal(signal.SIGINT)
        time.sleep(0.2)
    try:
        [(code, out, error)] = ended(processes[:1], timeout=hosts.INSISTED + 10)
    finally:
        processes[1].kill()
        processes[1].communicate()
    assert code == 130, out + error

    saved = workdir.progress(run)[0]
    [(code, out, error)] = ended(launch(1, 2, TFX, *words(run, **more, train__steps=saved + 3)))
    assert code == 0 and f"resuming from step {saved}" in out, out + error


@pytest.mark.slow
def test_two_processes_train_stop_together_and_go_on_as_one_or_four(words, tmp_path):
    run, straight = tmp_path / "run", tmp_path / "straight"
    more = dict(train__steps=2000, eval__every=4, eval__bleu_every=4, checkpoint__every=1000)
    processes = launch(2, 4, TFX, *words(run, **more), each=flags(2))
    while all(process.poll() is None for process in processes):
        if any(row["step"] >= 5 for row in metrics.read(run)):
            processes[1].send_signal(signal.SIGTERM)  # to the one that does not lead
            break
        time.sleep(0.1)
    for code, out, error in ended(processes):
        assert code == 143, out + error
        assert "stopped by SIGTERM after saving step" in error
    stopped = max(row["step"] for row in metrics.read(run, "train"))
    assert workdir.progress(run)[0] == stopped
    assert {"nll", "bleu"} <= set().union(*metrics.read(run, "valid"))
    said = [line for line in out.splitlines() if line and not line.startswith("[Gloo]")]
    assert not said, "only process 0 talks to a person"

    # What was saved arrives bit for bit, however it is laid out; every process has its rows.
    each = lambda n, where: (run, where, n, 2)
    seen = [json.loads(out.splitlines()[-1]) for _, out, _ in ended(launch(2, 4, LOOK, each=each))]
    states = {digest(run, {}), digest(run, {"devices": jax.devices()[:1]})}
    assert {view["state"] for look in seen for view in look.values()} == states and len(states) == 1
    count = seen[0]["fsdp"]["of"]
    assert [look["fsdp"]["rows"] for look in seen] == [
        [*range(count // 2)],
        [*range(count // 2, count)],
    ]
    assert all(look["across"]["rows"] == [*range(count)] for look in seen)
    assert all(view["same"] for look in seen for view in look.values())

    # One device goes on where eight stopped, then four processes; as one run that never stopped.
    steps = stopped + 4, stopped + 8
    more |= dict(eval__every=0, eval__bleu_every=0)
    for count, devices, last in ((1, 1, steps[0]), (4, 2, steps[1])):
        more["mesh__fsdp"] = devices
        command = words(run, **more | dict(train__steps=last))
        each = flags(count) if count > 1 else lambda *_: ()
        for code, out, error in ended(launch(count, devices, TFX, *command, each=each)):
            assert code == 0, out + error
    more = more | dict(train__steps=steps[1], mesh__fsdp=1)
    for code, out, error in ended(launch(1, 8, TFX, *words(straight, **more))):
        assert code == 0, out + error
    losses = lambda where: [row["loss"] for row in metrics.read(where, "train")]
    print(
        "largest relative difference", np.max(np.abs(np.array(losses(run)) / losses(straight) - 1))
    )
    np.testing.assert_allclose(losses(run), losses(straight), rtol=1e-5)
