"""How does a command come to run somewhere else: in processes here, on Slurm, on a TPU pod?

A job is data. A launcher turns it into the commands of a tool that people know (`sbatch`,
`gcloud`, `xpk`); `launch` prints them, as a shell would run them, and runs them. What runs
elsewhere is a commit: code that is not committed is refused, and the copy holds a file
REVISION. docs/pods.md walks through it.
"""

import dataclasses
import math
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import tfx
from tfx import config as configs

GRACE = 60.0  # seconds that processes get to save and end, before they are killed
HANDED_ON = signal.SIGTERM, signal.SIGINT, signal.SIGHUP
SAVED = [128 + number for number in HANDED_ON]  # exit codes: stopped, and so are all others

# How the cloud calls a chip: (accelerator, counted per chip, its software, the shapes of a slice).
# An accelerator's name says how many, not which shape; these are the shapes that it then has.
FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
CUBE = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16")
CHIPS = {
    "v4": ("v4", 2, "tpu-ubuntu2204-base", CUBE),
    "v5e": ("v5litepod", 1, "v2-alpha-tpuv5-lite", FLAT),
    "v5p": ("v5p", 2, "v2-alpha-tpuv5", CUBE),
    "v6e": ("v6e", 1, "v2-alpha-tpuv6e", FLAT),
    "tpu7x": ("tpu7x", 2, "", CUBE),  # on GKE only
}


@dataclasses.dataclass(frozen=True)
class Job:
    """A command, and where it shall run; of the places, those that a launcher `takes`.

    Attributes:
      argv: what every host runs, `["tfx", "train", "--config=...", "--workdir=..."]`.
      name: for the tools; by default the last part of the workdir.
      env: variables that are set for it.
      processes: how many; on Slurm as many nodes, one each.
      topology: of the TPU slice, as `tfx plan` writes it: "v5e:4x4".
      project, zone: of Google Cloud; by default what gcloud's own variables say,
        CLOUDSDK_CORE_PROJECT and CLOUDSDK_COMPUTE_ZONE.
      cluster: of GKE.
      options: more flags of the tool: "--spot", "--partition=gpu --gpus-per-node=8".
      root: the git checkout whose commit runs.
    """

    argv: Sequence[str]
    name: str = ""
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)
    processes: int = 1
    topology: str = ""
    project: str = ""
    zone: str = ""
    cluster: str = ""
    options: str = ""
    root: Path = Path(tfx.__file__).parent.parent

    @property
    def workdir(self) -> str:
        given = [word for word in self.argv if word.startswith("--workdir=")]
        return given[-1].partition("=")[2] if given else ""


class Command(NamedTuple):
    """A command of a tool; skipped where `unless`, another one, succeeds."""

    argv: list[str]
    stdin: str = ""
    unless: Sequence[str] = ()

    def __str__(self) -> str:
        """As one types it."""
        line = shlex.join(self.argv)
        if self.stdin:
            line += f" <<'END'\n{self.stdin}END"
        return f"{shlex.join(self.unless)} >/dev/null 2>&1 || {line}" if self.unless else line


class Steps(NamedTuple):
    """What a launcher runs, one after another; and what a person may want to run later."""

    commands: list[Command]
    later: dict[str, list[str]]


class Launcher(NamedTuple):
    """The tool that must be installed, the fields of a job that it takes, and what it does."""

    tool: str
    takes: tuple[str, ...]
    steps: Callable[[Job], Steps]


def launch(job: Job, where: str = "here", dry_run: bool = False) -> int:
    """Print the commands that start a job, and run them.

    Returns:
      The exit code of the first command that failed, or 0. Of a process that a signal ended,
      128 plus its number. 2 where the tool is not installed, so that nothing ran.

    Raises:
      ValueError: no such launcher, a field that is missing or means nothing there, a config
        that is wrong, a workdir that not every host reaches, code that is not committed.
    """
    if where not in LAUNCHERS:
        hint = configs.did_you_mean(where, LAUNCHERS) or f"; choose from {', '.join(LAUNCHERS)}"
        raise ValueError(f"--where={where}: no such place{hint}")
    tool, takes, steps = LAUNCHERS[where]
    commands, later = steps(_checked(job, where, takes))
    runs = not dry_run and shutil.which(tool)
    out = sys.stderr if runs else sys.stdout  # standard output is what the command prints
    print(*commands, sep="\n", file=out)
    for what, argv in later.items():
        print(f"# {what}: {shlex.join(argv)}", file=out)
    out.flush()
    if dry_run:
        print("dry run: nothing was run", file=sys.stderr)
        return 0
    if not runs:
        fix = "run these commands where it is, or ask for them with --dry_run"
        print(f"error: {tool} is not installed here, nothing was run; {fix}", file=sys.stderr)
        return 2
    return (_together if where == "here" else _in_turn)(commands, {**os.environ, **job.env})


# ------------------------------------------------------------------- launchers


def _here(job: Job) -> Steps:
    """Processes of this machine, which find each other over loopback."""
    argv = _python(job.argv)
    if job.processes == 1:
        return Steps([Command(argv)], {})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    argv += ["--distributed=on", f"--coordinator={address}", f"--num_processes={job.processes}"]
    return Steps([Command([*argv, f"--process_id={i}"]) for i in range(job.processes)], {})


SBATCH = """\
#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output={log}
#SBATCH --signal=TERM@120
export PYTHONPATH={tree}${{PYTHONPATH:+:$PYTHONPATH}}
{exports}
# JAX gives a Slurm task one GPU, unless it is told of all that the node has.
if [ -n "$SLURM_GPUS_ON_NODE" ]; then
  export JAX_LOCAL_DEVICE_IDS=$(seq --separator=, 0 $((SLURM_GPUS_ON_NODE - 1)))
fi
trap : TERM  # this shell must outlive the training that saves
srun --wait=60 ${{SLURM_CPUS_PER_TASK:+--cpus-per-task=$SLURM_CPUS_PER_TASK}} {command}
code=$?
# It saved because it was told to: go on later, unless it was cancelled.
if [ $code = 143 ] && [ "$(squeue --noheader --jobs=$SLURM_JOB_ID --format=%T)" = RUNNING ]; then
  scontrol requeue $SLURM_JOB_ID
fi
exit $code
"""


def _slurm(job: Job) -> Steps:
    """A batch job, one task a node, that Slurm starts again after it was preempted."""
    folder = Path(job.workdir).absolute() / "launch"
    tree = folder / revision(job.root)[:12]
    script = SBATCH.format(
        name=job.name,
        nodes=job.processes,
        log=shlex.quote(f"{folder}/%j.log"),
        tree=shlex.quote(f"{tree}"),
        exports=_exports(job.env),
        command=shlex.join(_python(_of_tree(job, tree), "-P")),
    )
    commands = [*_copy(job, tree), Command(["sbatch", *shlex.split(job.options)], script)]
    mine = ["--me", f"--name={job.name}"]
    later = {"state": ["squeue", *mine], "cancel": ["scancel", *mine]}
    return Steps(commands, later | {"log": ["tail", "-F", f"{folder}/JOBID.log"]})


# A TPU VM brings Python 3.10; a container of GKE, the Python of its image.
PYTHON = """\
python3 -m pip install --quiet --user uv
python3 -m uv python install --quiet 3.12
export TFX_PYTHON=$(python3 -m uv python find 3.12)
"""
RUN = """\
export TFX_EXTRAS='[tpu,gcs]'
source scripts/environment.sh
{exports}
exec {command}
"""
VM = """\
set -eo pipefail
export HOME=${{HOME:-/root}}
mkdir -p ~/tfx/{revision}
cd ~/tfx/{revision}
gcloud storage cat {code} | tar -xz
"""


def _tpu(job: Job) -> Steps:
    """A TPU VM, made if it is not there; every worker runs the command as this one waits."""
    on = [job.name, f"--project={job.project}", f"--zone={job.zone}"]
    name, software = _accelerator(job)
    make = [f"--accelerator-type={name}", f"--version={software}", *shlex.split(job.options)]
    gcloud = lambda verb, *rest: ["gcloud", "compute", "tpus", "tpu-vm", verb, *on, *rest]
    upload, script = _staged(job)
    return Steps(
        [
            *upload,
            Command(gcloud("create", *make), unless=gcloud("describe")),
            Command(gcloud("ssh", "--worker=all", f"--command={script}")),
        ],
        {"delete": gcloud("delete", "--quiet")},
    )


def _queued(job: Job) -> Steps:
    """A queued resource: whenever it comes, and whenever it boots, its workers run the command."""
    on = [f"--project={job.project}", f"--zone={job.zone}"]
    gcloud = lambda kind, verb, *rest: ["gcloud", "compute", "tpus", kind, verb, job.name, *rest]
    request = lambda verb, *rest: gcloud("queued-resources", verb, *on, *rest)
    log = "--command=sudo journalctl --follow --unit=google-startup-scripts"
    name, software = _accelerator(job)
    upload, script = _staged(job)
    file = _private(f"{job.name}.sh")
    make = [f"--node-id={job.name}", f"--accelerator-type={name}", f"--runtime-version={software}"]
    make += [f"--metadata-from-file=startup-script={file}", *shlex.split(job.options)]
    return Steps(
        [
            *upload,
            Command(["dd", f"of={file}", "status=none"], f"#!/bin/bash\n{script}"),
            Command(request("create", *make)),
        ],
        {
            "state": request("describe", "--format=value(state.state)"),
            "log": gcloud("tpu-vm", "ssh", *on, "--worker=0", log),
            "delete": request("delete", "--force", "--quiet"),
        },
    )


def _gke(job: Job) -> Steps:
    """A workload of a GKE cluster, through xpk; started again when a host goes away."""
    tree = _private(f"{job.name}-{revision(job.root)[:12]}")
    on = [f"--cluster={job.cluster}", f"--project={job.project}", f"--zone={job.zone}"]
    command = RUN.format(exports=_exports(job.env), command=shlex.join(_of_tree(job, Path())))
    xpk = lambda verb, *rest: ["xpk", "workload", verb, *on, *rest]
    create = xpk(
        *("create", f"--workload={job.name}", f"--tpu-type={_accelerator(job)[0]}"),
        *("--base-docker-image=python:3.12", f"--script-dir={tree}", f"--command={command}"),
        # A pod that is told to go exits with 143, for which xpk starts all of them again.
        *("--max-restarts=100", "--termination-grace-period-seconds=120"),
        *shlex.split(job.options),
    )
    pods = ["kubectl", "logs", "--follow", f"--selector=xpk.google.com/workload={job.name}"]
    later = {"state": xpk("list"), "log": pods}
    later |= {"delete": xpk("delete", f"--workload={job.name}")}
    return Steps([*_copy(job, tree), Command(create)], later)


CLOUD = ("topology", "project", "zone", "options")
LAUNCHERS = {
    "here": Launcher(sys.executable, ("processes",), _here),
    "slurm": Launcher("sbatch", ("processes", "options"), _slurm),
    "tpu": Launcher("gcloud", CLOUD, _tpu),
    "queued": Launcher("gcloud", CLOUD, _queued),
    "gke": Launcher("xpk", (*CLOUD, "cluster"), _gke),
}


# --------------------------------------------------------------------- checks


def _checked(job: Job, where: str, takes: tuple[str, ...]) -> Job:
    """The job with its defaults, where all that can be known ahead is right."""
    if not job.argv:
        raise ValueError(f"what shall run? tfx launch --where={where} -- tfx train --config=...")
    if job.processes < 1:
        raise ValueError(f"--processes={job.processes}: want 1 or more")
    for field in ("processes", "topology", "project", "zone", "cluster", "options"):
        if getattr(job, field) != getattr(Job, field) and field not in takes:
            raise ValueError(f"--{field} means nothing to --where={where}; leave it out")
    if where == "here":
        return job
    variables = {"project": "CLOUDSDK_CORE_PROJECT", "zone": "CLOUDSDK_COMPUTE_ZONE"}
    known = {key: getattr(job, key) or os.environ.get(var, "") for key, var in variables.items()}
    name = job.name or re.sub(r"[^a-z0-9]+", "-", Path(job.workdir).name.lower()).strip("-")
    job = dataclasses.replace(job, name=name, **known)
    for field in (field for field in takes if field not in ("processes", "options")):
        if not getattr(job, field):
            hint = f", or set {variables[field]}" if field in variables else ""
            raise ValueError(f"--{field} is missing: --where={where} needs it{hint}")
    if "topology" in takes and not _accelerator(job)[1] and where != "gke":
        raise ValueError(f"--topology={job.topology}: this chip is to be had with --where=gke only")
    if not job.workdir:
        raise ValueError("--workdir=DIR is missing in the command: where every host finds the run")
    if "topology" in takes and not job.workdir.startswith("gs://"):
        raise ValueError(
            f"--workdir={job.workdir}: only its own host would see it, and it goes with the VM; "
            "want --workdir=gs://BUCKET/NAME"
        )
    if where == "slurm" and "://" in job.workdir:
        raise ValueError(f"--workdir={job.workdir}: want a directory that all nodes share")
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", job.name):
        raise ValueError(f'--name={job.name}: want at most 40 of a-z, 0-9 and "-", a letter first')
    if list(job.argv[:2]) == ["tfx", "train"]:  # a wrong config is found before a pod is rented
        for spec in [w.partition("=")[2] for w in job.argv if w.startswith("--config=")]:
            chosen = configs.load(spec)
            configs.override(chosen, [w for w in job.argv if re.match(r"--?(no)?config\.", w)])
            configs.freeze(chosen)
    return job


def _accelerator(job: Job) -> tuple[str, str]:
    """How Google names a slice, and the software of its VMs: of v5e:4x4, v5litepod-16."""
    chip, _, shape = job.topology.partition(":")
    if chip not in CHIPS:
        choices = ", ".join(f"{chip}:{row[-1][3]}" for chip, row in CHIPS.items())
        raise ValueError(f"--topology={job.topology}: want CHIP:SHAPE, such as {choices}")
    name, cores, software, shapes = CHIPS[chip]
    if shape not in shapes:
        raise ValueError(f"--topology={job.topology}: a {chip} slice is {', '.join(shapes)}")
    return f"{name}-{cores * math.prod(map(int, shape.split('x')))}", software


# --------------------------------------------------------------- code that travels


def revision(root: Path) -> str:
    """The commit of a checkout that a job runs.

    Raises:
      ValueError: there is no git repository, or it holds changes that are not committed:
        files that are not tracked count too, for the copy would lack them.
    """
    git = lambda *words: (
        subprocess.run(
            ["git", "-C", root, *words], capture_output=True, text=True, check=True
        ).stdout
    )
    try:
        head, changed = git("rev-parse", "HEAD").strip(), git("status", "--porcelain")
    except (OSError, subprocess.SubprocessError):
        raise ValueError(f"{root}: no git commit; what runs elsewhere is one") from None
    if files := [line[3:] for line in changed.splitlines()]:
        more = f" and {len(files) - 3} more" if len(files) > 3 else ""
        named = f"{', '.join(files[:3])}{more}"
        raise ValueError(f"{root}: what runs elsewhere is a commit; commit or ignore {named}")
    return head


def _archive(job: Job, file: Path) -> Command:
    """Pack the commit, and a file that says which it is."""
    head = revision(job.root)
    named = f"--add-virtual-file=REVISION:{head}"
    return Command(["git", "-C", f"{job.root}", "archive", named, f"--output={file}", head])


def _copy(job: Job, tree: Path) -> list[Command]:
    """Put the commit's files into a directory."""
    packed = tree.with_name(f"{tree.name}.tar")
    return [
        Command(["mkdir", "-p", f"{tree}"]),
        _archive(job, packed),
        Command(["tar", f"--file={packed}", "--extract", f"--directory={tree}"]),
    ]


def _staged(job: Job) -> tuple[list[Command], str]:
    """Commands that upload the commit, and the script with which a TPU VM runs it."""
    short = revision(job.root)[:12]
    packed, code = _private(f"{short}.tar.gz"), f"{job.workdir}/launch/{short}.tar.gz"
    command = shlex.join(_of_tree(job, Path()))
    script = VM.format(revision=short, code=shlex.quote(code)) + PYTHON
    script += RUN.format(exports=_exports(job.env), command=command)
    upload = Command(["gcloud", "storage", "cp", f"{packed}", code])
    return [Command(["mkdir", "-p", f"{packed.parent}"]), _archive(job, packed), upload], script


def _of_tree(job: Job, tree: Path) -> list[str]:
    """The command where `tree` is the copy: a config file is read from there."""
    words = list(job.argv)
    for i, word in enumerate(words):
        path, colon, arg = word.removeprefix("--config=").partition(":")
        if word.startswith("--config=") and Path(path).is_file():
            inside = Path(path).resolve()
            if not inside.is_relative_to(job.root.resolve()):
                raise ValueError(f"{path}: lies outside of {job.root}, whose commit is what runs")
            inside = inside.relative_to(job.root.resolve())
            words[i] = f"--config={tree / inside}{colon}{arg}"
    return words


def _private(name: str) -> Path:
    """A file of the launches of this machine."""
    return Path.home() / ".cache" / "tfx" / "launch" / name


def _exports(env: Mapping[str, str]) -> str:
    return "\n".join(f"export {name}={shlex.quote(value)}" for name, value in env.items())


def _python(argv: Sequence[str], *flags: str) -> list[str]:
    """A `tfx` command, run by this very Python."""
    return [sys.executable, *flags, "-m", "tfx.main", *argv[1:]] if argv[0] == "tfx" else [*argv]


# -------------------------------------------------------------------- running


def _in_turn(commands: list[Command], env: Mapping[str, str]) -> int:
    """Run one after another, until one fails; its exit code."""
    run = lambda argv, **how: subprocess.run(argv, env=env, text=True, **how).returncode
    for argv, stdin, unless in commands:
        if unless and run(unless, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) == 0:
            continue
        if code := run(argv, input=stdin or None):
            return _as_shell(code)
    return 0


def _together(commands: list[Command], env: Mapping[str, str]) -> int:
    """Run all at once; when one fails the others are told to stop. Signals are handed on.

    In sessions of their own, for else a Ctrl-C would reach them twice, and at the second
    they would leave without saving. What is ignored (SIGHUP under nohup) stays so.
    """
    signals, told, failed, deadline = [], False, 0, math.inf
    handle = lambda number, frame: signals.append(number)
    heard = [n for n in HANDED_ON if signal.getsignal(n) != signal.SIG_IGN]
    old = {number: signal.signal(number, handle) for number in heard}
    children = []
    try:
        children += (subprocess.Popen(c.argv, env=env, start_new_session=True) for c in commands)
        while running := [child for child in children if child.poll() is None]:
            failed = failed or next((c.returncode for c in children if c.returncode), 0)
            if failed and deadline == math.inf:
                deadline = time.monotonic() + GRACE
                signals += [] if told or signals or failed in SAVED else [signal.SIGTERM]
            if time.monotonic() > deadline:
                signals.append(signal.SIGKILL)
            while signals:
                number, told = signals.pop(0), True
                for child in running:
                    child.send_signal(number)
            time.sleep(0.05)
    finally:
        for child in children:
            child.kill()  # none, unless something above went wrong
        for number, handler in old.items():
            signal.signal(number, handler)
    return _as_shell(failed or next((c.returncode for c in children if c.returncode), 0))


def _as_shell(code: int) -> int:
    return code if code >= 0 else 128 - code
