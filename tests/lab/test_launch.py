"""Jobs become the commands of other people's tools, and those do what is expected of them."""

import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tfx.lab import launch as launching
from tfx.lab.launch import LAUNCHERS, Job, launch

ROOT = Path(__file__).parents[2]
TRAIN = ("tfx", "train", "--config=quickstart:tiny", "--workdir=gs://bucket/runs/big")
CLOUD = dict(topology="v5e:4x4", project="mine", zone="us-west4-a")


def git(root, *words):
    words = ["git", "-C", root, "-c", "user.name=x", "-c", "user.email=x@x", *words]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """No setting of the machine reaches a test, and no tool of the cloud."""
    for name in ("CLOUDSDK_CORE_PROJECT", "CLOUDSDK_COMPUTE_ZONE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", f"{tmp_path}/home")


@pytest.fixture
def root(tmp_path):
    """A git checkout with one commit: a config, and a script that makes an environment."""
    root = tmp_path / "checkout"
    (root / "scripts").mkdir(parents=True)
    (root / "mine.py").write_text((ROOT / "configs/quickstart.py").read_text())
    (root / "scripts/environment.sh").write_text('[ "$TFX_EXTRAS" = "[tpu,gcs]" ]\n')
    git(root, "init", "--quiet")
    git(root, "add", ".")
    git(root, "commit", "--quiet", "--message=one")
    return root


def stub(folder, name, text):
    """A program that a test puts in the place of another."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/bash\n{text}\n")
    (folder / name).chmod(0o755)


def steps(job, where):
    _, takes, make = LAUNCHERS[where]
    return make(launching._checked(job, where, takes))


# ------------------------------------------------------------------ recorded commands


def test_a_tpu_vm_is_made_once_and_every_worker_runs_the_command(root):
    job = Job(TRAIN, root=root, options="--spot", **CLOUD)
    head, on = git(root, "rev-parse", "HEAD"), ["--project=mine", "--zone=us-west4-a"]
    packed = f"{Path.home()}/.cache/tfx/launch/{head[:12]}.tar.gz"
    vm = lambda verb, *rest: ["gcloud", "compute", "tpus", "tpu-vm", verb, "big", *on, *rest]
    (make, pack, upload, create, ssh), later = steps(job, "tpu")
    assert make.argv == ["mkdir", "-p", str(Path(packed).parent)]
    named = f"--add-virtual-file=REVISION:{head}"
    assert pack.argv == ["git", "-C", str(root), "archive", named, f"--output={packed}", head]
    stored = f"gs://bucket/runs/big/launch/{head[:12]}.tar.gz"
    assert upload.argv == ["gcloud", "storage", "cp", packed, stored]
    kind = ["--accelerator-type=v5litepod-16", "--version=v2-alpha-tpuv5-lite"]
    assert create.argv == vm("create", *kind, "--spot")
    assert create.unless == vm("describe")
    assert ssh.argv[:-1] == vm("ssh", "--worker=all")
    assert ssh.argv[-1].endswith(f"exec {' '.join(TRAIN)}\n")
    assert later == {"delete": vm("delete", "--quiet")}


def test_a_queued_resource_starts_the_command_when_it_boots(root):
    (*_, write, create), later = steps(Job(TRAIN, "run-1", root=root, **CLOUD), "queued")
    file = f"{Path.home()}/.cache/tfx/launch/run-1.sh"
    assert write.argv == ["dd", f"of={file}", "status=none"]
    assert write.stdin.startswith("#!/bin/bash\n")
    queued = ["gcloud", "compute", "tpus", "queued-resources"]
    on = ["run-1", "--project=mine", "--zone=us-west4-a"]
    kind = ["--accelerator-type=v5litepod-16", "--runtime-version=v2-alpha-tpuv5-lite"]
    script = f"--metadata-from-file=startup-script={file}"
    assert create.argv == [*queued, "create", *on, "--node-id=run-1", *kind, script]
    assert later["state"] == [*queued, "describe", *on, "--format=value(state.state)"]
    assert later["delete"] == [*queued, "delete", *on, "--force", "--quiet"]


def test_a_workload_of_gke(root):
    job = Job(TRAIN, root=root, cluster="pods", env={"A": "b c"}, **CLOUD)
    (*_, create), later = steps(job, "gke")
    tree = f"{Path.home()}/.cache/tfx/launch/big-{git(root, 'rev-parse', 'HEAD')[:12]}"
    on = ["--cluster=pods", "--project=mine", "--zone=us-west4-a"]
    assert create.argv == [
        *("xpk", "workload", "create", *on, "--workload=big", "--tpu-type=v5litepod-16"),
        *("--base-docker-image=python:3.12", f"--script-dir={tree}"),
        "--command=export TFX_EXTRAS='[tpu,gcs]'\nsource scripts/environment.sh\nexport A='b c'\n"
        f"exec {' '.join(TRAIN)}\n",
        *("--max-restarts=100", "--termination-grace-period-seconds=120"),
    ]
    assert later["delete"] == ["xpk", "workload", "delete", *on, "--workload=big"]


@pytest.mark.skipif(not shutil.which("xpk"), reason="xpk is not installed")
def test_xpk_understands_its_command(root, tmp_path):
    """Its own dry run writes the manifest: of four hosts, restarted when they exit with 143."""
    (*copy, create), _ = steps(Job(TRAIN, root=root, cluster="pods", **CLOUD), "gke")
    assert launching._in_turn(copy, os.environ) == 0
    dry = ["--dry-run", "--skip-validation", f"--output-manifest-file={tmp_path}/it.yaml"]
    subprocess.run([*create.argv, *dry], check=True, capture_output=True, timeout=60)
    manifest = (tmp_path / "it.yaml").read_text()
    assert re.search(r"completions: 4\b", manifest) and "gke-tpu-topology: 4x4" in manifest
    assert "maxRestarts: 100" in manifest and ",143," in manifest
    # xpk signals what `(...) &` starts: that must be tfx itself, and no shell around it.
    assert f"exec {' '.join(TRAIN)}" in manifest


def test_a_slice_has_the_name_that_google_gives_it():
    names = {"v5e:4x4": 16, "v5e:16x16": 256, "v4:2x2x2": 16, "v5p:4x4x4": 128, "v6e:2x4": 8}
    for topology, count in names.items():
        name, _ = launching._accelerator(Job(TRAIN, topology=topology))
        assert name.rpartition("-")[2] == str(count)
    for chip, (_, _, _, shapes) in launching.CHIPS.items():
        # A name says how many chips, so no two shapes may have as many.
        named = [launching._accelerator(Job(TRAIN, topology=f"{chip}:{s}")) for s in shapes]
        assert len({*named}) == len(shapes)


# ------------------------------------------------------------------------ scripts


def test_a_worker_runs_the_command_in_the_tree_of_the_commit(root, tmp_path):
    """The script of a TPU VM for real, but for the tools that it calls."""
    there, head = tmp_path / "there", git(root, "rev-parse", "HEAD")
    argv = ("tfx", "train", f"--config={root}/mine.py:tiny", "--workdir=gs://bucket/runs/big")
    (_, pack, *_, ssh), _ = steps(Job(argv, root=root, env={"A": "b c"}, **CLOUD), "tpu")
    stub(there, "gcloud", f'[ "$*" = "storage cat gs://bucket/runs/big/launch/{head[:12]}.tar.gz" ]'
         f" && cat {tmp_path}/code.tar.gz")  # fmt: skip
    stub(there, "python3", '[ "$4" != find ] || echo /python')
    stub(there, "tfx", 'echo "$@" "$A" $TFX_PYTHON; cat REVISION; exit 143')
    pack.argv[-2] = f"--output={tmp_path}/code.tar.gz"
    assert launching._in_turn([pack], os.environ) == 0
    env = {"PATH": f"{there}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    script = ssh.argv[-1].removeprefix("--command=")
    for _ in range(2):  # a worker that boots again does the same again
        done = subprocess.run(["bash", "-c", script], env=env, capture_output=True, text=True)
        assert done.returncode == 143, done.stderr
        words = f"train --config=mine.py:tiny --workdir=gs://bucket/runs/big b c /python\n{head}"
        assert done.stdout == words


@pytest.mark.parametrize(
    "state, code, requeued", [("RUNNING", 143, True), ("CANCELLED", 143, False), ("RUNNING", 1, 0)]
)
def test_a_slurm_job_goes_on_after_preemption_and_only_then(
    root, tmp_path, monkeypatch, state, code, requeued
):
    argv = ("tfx", "train", "--config=quickstart:tiny", f"--workdir={tmp_path}/a run")
    job = Job(argv, "big", root=root, processes=2, options="--partition=gpu --time=60")
    (*copy, submit), _ = steps(job, "slurm")
    head = git(root, "rev-parse", "HEAD")
    tree = f"{tmp_path}/a run/launch/{head[:12]}"
    assert submit.argv == ["sbatch", "--partition=gpu", "--time=60"]
    for line in ("--nodes=2", "--ntasks-per-node=1", "--requeue", "--job-name=big"):
        assert f"#SBATCH {line}\n" in submit.stdin
    assert launching._in_turn(copy, os.environ) == 0
    assert Path(tree, "mine.py").exists() and Path(tree, "REVISION").read_text() == head
    bin = tmp_path / "bin"
    stub(bin, "srun", f'echo "$PYTHONPATH" "$JAX_LOCAL_DEVICE_IDS" "$@"; exit {code}')
    stub(bin, "squeue", f"echo {state}")
    stub(bin, "scontrol", 'echo "$@"')
    monkeypatch.setenv("PATH", f"{bin}:{os.environ['PATH']}")
    job = {"SLURM_JOB_ID": "7", "SLURM_GPUS_ON_NODE": "4", "SLURM_CPUS_PER_TASK": "2"}
    job["PYTHONPATH"] = "/more"
    done = subprocess.run(
        ["bash"], input=submit.stdin, env={**os.environ, **job}, capture_output=True, text=True
    )
    assert done.returncode == code
    first, *rest = done.stdout.splitlines()
    assert first.startswith(
        f"{tree}:/more 0,1,2,3 --wait=60 --cpus-per-task=2 {sys.executable} -P -m"
    )
    assert rest == ["requeue 7"] * bool(requeued)


# ------------------------------------------------------------------------- wrong input


@pytest.mark.parametrize(
    "where, change, message",
    [
        ("slrum", {}, "--where=slrum: no such place; did you mean slurm?"),
        ("here", {"argv": ()}, r"what shall run\? tfx launch --where=here -- tfx train"),
        ("here", {"processes": 0}, "--processes=0: want 1 or more"),
        (
            "tpu",
            {"topology": "v5e-16"},
            "--topology=v5e-16: want CHIP:SHAPE, such as v4:.*, v5e:4x4, ",
        ),
        ("tpu", {"topology": "v5e:3x3"}, "--topology=v5e:3x3: a v5e slice is 1x1, 2x2, 2x4, 4x4"),
        ("tpu", {"topology": "tpu7x:2x2x1"}, "this chip is to be had with --where=gke only"),
        ("tpu", {"topology": ""}, "--topology is missing: --where=tpu needs it"),
        ("tpu", {"project": ""}, "--project is missing: .*, or set CLOUDSDK_CORE_PROJECT"),
        ("queued", {"zone": ""}, "--zone is missing: .*, or set CLOUDSDK_COMPUTE_ZONE"),
        ("gke", {}, "--cluster is missing: --where=gke needs it"),
        ("tpu", {"cluster": "pods"}, "--cluster means nothing to --where=tpu"),
        ("tpu", {"processes": 4}, "--processes means nothing to --where=tpu"),
        ("tpu", {"argv": TRAIN[:3]}, "--workdir=DIR is missing in the command"),
        ("tpu", {"argv": (*TRAIN, "--workdir=runs/big")}, "--workdir=runs/big: .*want .*gs://"),
        ("tpu", {"name": "Big_1"}, "--name=Big_1: want at most 40"),
        ("tpu", {"argv": ("tfx", "train", "--config=quikstart", TRAIN[3])}, "did you mean quicks"),
        ("tpu", {"argv": (*TRAIN, "--config.optim.lrr=1")}, "optim.lrr: no such key"),
        ("tpu", {"argv": (*TRAIN, "--config.optim.lr=-1")}, "optim.lr = -1.0: want"),
    ],
)
def test_wrong_input_is_found_before_anything_runs(root, where, change, message):
    job = dataclasses.replace(Job(TRAIN, root=root, **(CLOUD if where != "here" else {})), **change)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        launch(job, where)
    assert "\n" not in str(caught.value)


def test_what_is_not_committed_does_not_run_elsewhere(root, tmp_path):
    assert launching.revision(root) == git(root, "rev-parse", "HEAD")
    (root / "mine.py").write_text("")
    (root / "new.py").write_text("")
    with pytest.raises(ValueError, match=r"commit or ignore mine\.py, new\.py$"):
        launch(Job(TRAIN, root=root, **CLOUD), "tpu")
    with pytest.raises(ValueError, match="no git commit"):
        launching.revision(tmp_path / "nowhere")
    outside = tmp_path / "other.py"
    outside.write_text((ROOT / "configs/quickstart.py").read_text())
    git(root, "commit", "--all", "--quiet", "--message=two")
    (root / "new.py").unlink()
    argv = ("tfx", "train", f"--config={outside}", TRAIN[3])
    with pytest.raises(ValueError, match="lies outside of"):
        launch(Job(argv, root=root, **CLOUD), "tpu")


def test_without_the_tool_nothing_runs_and_that_is_no_success(root, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", os.path.dirname(shutil.which("git")) + "/nothing")
    monkeypatch.setattr(launching, "revision", lambda root, head="f" * 40: head)
    assert launch(Job(TRAIN, root=root, **CLOUD), "queued", dry_run=True) == 0
    dry, err = capsys.readouterr()
    assert err == "dry run: nothing was run\n"
    assert launch(Job(TRAIN, root=root, **CLOUD), "queued") == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: gcloud is not installed here, nothing was run; ") and out == dry
    assert "\n# delete: gcloud compute tpus queued-resources delete big " in out
    # What was printed is a script: here with stubs in place of the tools.
    bin, log = tmp_path / "bin", tmp_path / "log"
    for tool in ("git", "gcloud", "mkdir"):
        stub(bin, tool, f'echo {tool} "$@" >> {log}')
    stub(bin, "dd", f"/bin/cat >> {log}")
    done = subprocess.run(["/bin/bash", "-e"], input=out, text=True, env={"PATH": str(bin)})
    assert done.returncode == 0
    ran = log.read_text()
    assert f"exec {' '.join(TRAIN)}\n" in ran and "source scripts/environment.sh\n" in ran
    assert "gcloud compute tpus queued-resources create big" in ran


# ------------------------------------------------------------------------ run here


def python(text):
    return sys.executable, "-c", text


def test_one_process_hands_its_exit_code_and_its_output_on(capfd):
    assert launch(Job(python("import os; print(os.environ['A'])"), env={"A": "it"})) == 0
    out, err = capfd.readouterr()
    assert out == "it\n" and err.startswith(sys.executable)
    assert launch(Job(python("raise SystemExit(7)"))) == 7
    assert launch(Job(python("import os; os.kill(os.getpid(), 9)"))) == 128 + 9
    assert launch(Job(python("raise SystemExit(7)")), dry_run=True) == 0


def test_processes_know_of_each_other(tmp_path):
    tell = f"import sys, os; open(f'{tmp_path}/{{os.getpid()}}', 'w').write(' '.join(sys.argv[1:]))"
    assert launch(Job(python(tell), processes=3)) == 0
    told = sorted(path.read_text() for path in tmp_path.glob("[0-9]*"))
    assert len(told) == 3
    coordinator = re.search(r"--coordinator=127\.0\.0\.1:\d+", told[0])[0]
    assert told == [
        f"--distributed=on {coordinator} --num_processes=3 --process_id={i}" for i in range(3)
    ]


def test_when_one_fails_the_rest_are_ended(monkeypatch):
    """With SIGTERM, so that they can save; with SIGKILL where that does not help."""
    deaf = "import signal, sys, time; signal.signal(15, signal.SIG_IGN)\n"
    wait = "import sys, time\n"
    rest = "if sys.argv[-1][-1] == '1': time.sleep(1); sys.exit(3)\ntime.sleep(60)"
    monkeypatch.setattr(launching, "GRACE", 1.0)
    for start in (wait, deaf):
        began = time.monotonic()
        assert launch(Job(python(start + rest), processes=2)) == 3
        assert time.monotonic() - began < 20


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_reaches_every_process_once(tmp_path, number):
    child = f"""if True:
        import os, signal, sys, time
        got = []
        for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(each, lambda number, frame: got.append(number))
        open(f"{tmp_path}/up{{os.getpid()}}", "w")
        while not got: time.sleep(0.05)
        time.sleep(1)
        open(f"{tmp_path}/got{{os.getpid()}}", "w").write(f"{{got}}")
        sys.exit(128 + got[0])"""
    parent = f"from tfx.lab.launch import *; sys.exit(launch(Job({python(child)}, processes=2)))"
    running = subprocess.Popen(python(parent), cwd=ROOT)
    for _ in range(600):
        if len([*tmp_path.glob("up*")]) == 2:
            break
        time.sleep(0.05)
    running.send_signal(number)
    assert running.wait(30) == 128 + number
    assert [path.read_text() for path in tmp_path.glob("got*")] == [f"[{number:d}]"] * 2


# ---------------------------------------------------------------------- a real Slurm


def until(holds, seconds):
    """Wait until something holds; what it was in the end."""
    end = time.monotonic() + seconds
    while not (found := holds()) and time.monotonic() < end:
        time.sleep(0.5)
    return found


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Two nodes on this machine; returns a function that runs one of the tools."""
    if os.geteuid() or not (shutil.which("slurmctld") and shutil.which("munged")):
        pytest.skip("no root, or no Slurm here (Debian: apt-get install slurm-wlm munge)")
    one_machine = [f"{ROOT}/scripts/slurm_one_machine.sh"]
    subprocess.run([*one_machine, "start", f"{tmp_path}/slurm"], check=True)
    monkeypatch.setenv("SLURM_CONF", f"{tmp_path}/slurm/slurm.conf")
    run = lambda *argv: subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    yield run
    run("scancel", "--me")
    until(lambda: not run("squeue", "--noheader"), 60)
    subprocess.run([*one_machine, "stop", f"{tmp_path}/slurm"], check=True)


@pytest.mark.slow
def test_slurm_trains_on_two_nodes_and_goes_on_after_preemption(slurm, tmp_path):
    root, workdir, steps = tmp_path / "tree", tmp_path / "a run", 400
    files = git(ROOT, "ls-files", "--cached", "--others", "--exclude-standard").splitlines()
    for file in (file for file in files if file.startswith(("tfx/", "configs/"))):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, root / file)
    git(root, "init", "--quiet")
    git(root, "add", ".")
    git(root, "commit", "--quiet", "--message=one")
    change = {"train.steps": steps, "train.log_every": 50, "eval.every": 0, "checkpoint.every": 100}
    argv = ["tfx", "train", "--config=quickstart:tiny", f"--workdir={workdir}"]
    argv += [f"--config.{key}={value}" for key, value in change.items()]
    # The nodes have no names that resolve.
    env = {"JAX_PLATFORMS": "cpu", "JAX_COORDINATOR_ADDRESS": "127.0.0.1:14321"}
    assert launch(Job(argv, processes=2, env=env, root=root), "slurm") == 0
    (log,) = until(lambda: [*workdir.glob("launch/*.log")], 60)
    assert until(lambda: "step 50/" in log.read_text(), 180), log.read_text()
    slurm(
        "sbatch",
        "--partition=urgent",
        "--nodes=2",
        "--exclusive",
        "--wrap=sleep 2",
        "--output=/dev/null",
    )
    assert until(lambda: not slurm("squeue", "--noheader"), 300), log.read_text()
    said = log.read_text()
    print(said)
    saved = int(re.search(r"stopped by SIGTERM after saving step (\d+)", said)[1])
    assert 50 <= saved < steps
    assert len((workdir / "starts.jsonl").read_text().splitlines()) == 2
    assert f"step {steps}/{steps}" in said.partition("stopped by")[2]
    assert (workdir / "checkpoints" / f"{steps}").is_dir()


def test_under_nohup_a_launch_hands_no_closed_terminal_on(tmp_path):
    child = f"open('{tmp_path}/up', 'w'); import time; time.sleep(2)"
    parent = (
        "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN); "
        f"from tfx.lab.launch import *; sys.exit(launch(Job({python(child)}, processes=2)))"
    )
    running = subprocess.Popen(python(parent), cwd=ROOT)
    while not (tmp_path / "up").exists():
        time.sleep(0.05)
    running.send_signal(signal.SIGHUP)
    assert running.wait(30) == 0
