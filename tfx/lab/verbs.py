"""The verbs of this drawer, each a short function: see tfx/cli.py."""

import os
import re
import sys
from typing import Annotated

from tfx import config as configs
from tfx import lock
from tfx.cli import Overrides, Spec, Step, Workdir
from tfx.workdir import changed


def plan(
    config: Spec,
    topology: Annotated[str, "CHIP:SHAPE", "v5e:4x4, v5p:4x4x4, ...; cpu: the devices here"],
    decode: Annotated[bool, "", "plan the search of tfx translate, not the training step"] = False,
    shape: Annotated[str, "ROWS,SOURCE,TARGET", "of a batch"] = "",
    sweep_mesh: Annotated[bool, "", "try every mesh that divides the model, rank those"] = False,
    json: Annotated[bool, "", "print JSON"] = False,
    *,
    overrides: Overrides,
) -> None:
    """Compile a config for a pod that is not there: does it fit, what would hold it up?

    It needs no TPU and no data, only libtpu: pip install "tfx-research[tpu]". Models of translation
    so far.

      tfx plan --config=wmt14_en_de:big --topology=v5e:4x4 --config.model.scan
      tfx plan --config=wmt14_en_de:big --topology=v5p:4x4x4 --sweep_mesh
      tfx plan --config=quickstart --topology=cpu --decode
    """
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    configs.configure(config, overrides)  # what is wrong with it is wrong everywhere
    from tfx.lab import plan as planning

    kind = planning.devices(topology)[0].device_kind
    chosen, _ = configs.configure(config, overrides, kind)
    wanted = re.fullmatch(r"(\d+),(\d+),(\d+)", shape) if shape else None
    if shape and not wanted:
        raise ValueError(f"--shape={shape}: want ROWS,SOURCE,TARGET, such as 64,128,128")
    how = dict(decode=decode, shape=tuple(map(int, wanted.groups())) if wanted else None)
    if sweep_mesh:
        say = lambda line: print(line, file=sys.stderr)
        plans = planning.sweep_mesh(chosen, topology, **how, say=say)
        told = [planning.to_json(each) for each in plans]
        print(f"[{', '.join(told)}]" if json else planning.table(plans))
    else:
        found = planning.plan(chosen, topology, **how)
        print(planning.to_json(found) if json else planning.show(found))


def parity(
    folder: Annotated[str, "DIR", "a reference folder: config.json, model.safetensors, io.npz"],
    float64: Annotated[bool, "", "compute in float64"] = False,
) -> int:
    """Compare a model with what the reference implementation computed, output by output.

    Prints the largest difference of each against max(1, the largest of the reference); the exit
    code is 1 where one is above 1e-5, or an id that was generated differs.

      tfx parity tests/fixtures/hf/bert/BertForPreTraining
    """
    from tfx.lab import parity as comparing

    return comparing.compare(folder, float64)


def launch(
    where: Annotated[str, "PLACE", "here, slurm, tpu, queued or gke"] = "here",
    name: Annotated[str, "NAME", "of the job; by default the last part of its workdir"] = "",
    processes: Annotated[int, "N", "how many processes; on Slurm, nodes"] = 1,
    topology: Annotated[str, "CHIP:SHAPE", "of a TPU slice, such as v5e:4x4"] = "",
    project: Annotated[str, "NAME", "of Google Cloud"] = "",
    zone: Annotated[str, "NAME", "of Google Cloud, such as us-west4-a"] = "",
    cluster: Annotated[str, "NAME", "of GKE"] = "",
    options: Annotated[str, "FLAGS", "more flags of sbatch, gcloud or xpk"] = "",
    dry_run: Annotated[bool, "", "print the commands, run nothing"] = False,
    *,
    command: list[str],
) -> int:
    """Start a command somewhere else: in several processes, on Slurm, on a TPU pod.

    It prints the commands that do so. What runs elsewhere is the commit of this checkout.

      tfx launch --processes=2 -- tfx train --config=quickstart --workdir=runs/two
      tfx launch --where=slurm --processes=4 --options=--partition=gpu -- tfx train ...
      tfx launch --where=queued --topology=v5e:4x4 --options=--spot -- tfx train ...
    """
    from tfx.lab import launch as launching

    job = launching.Job(command, name, {}, processes, topology, project, zone, cluster, options)
    return launching.launch(job, where, dry_run)


def import_(
    from_: Annotated[str, "DIR", "a folder of Hugging Face: config.json, weights, tokenizer"],
    workdir: Annotated[str, "DIR", "the new workdir, for eval, translate, and to start from"],
) -> None:
    """Make a workdir of a pre-trained model.

    To train it on, start another run from it (or from the folder itself): --config.init_from=DIR.

      tfx import --from=models/opus-mt-en-de --workdir=runs/opus
      tfx translate --workdir=runs/opus --input=in.en
    """
    lock.check(workdir)
    from tfx import hosts
    from tfx.lab import exchange

    hosts.keep_memory()
    config = configs.to_dict(exchange.bring(from_, workdir))
    model, objective = config["model"], config["objective"]["name"]
    print(f"{workdir}: {model['name']}, head {model.get('head', 'lm')}, for {objective}")


def export(
    workdir: Workdir,
    to: Annotated[str, "DIR", "the new folder"],
    format: Annotated[str, "hf|ctranslate2|jax", "transformers, CTranslate2, jax.export"] = "hf",
    shape: Annotated[str, "ROWS,LENGTH", "of what the program of --format=jax reads"] = "",
    step: Step = 0,
    *,
    overrides: Overrides,
) -> None:
    """Write a trained model for other programs, into a new folder.

    hf: a folder that transformers loads, and tfx import. ctranslate2: of models that translate.
    jax: a program of jax.export, with its parameters, that needs JAX alone.

      tfx export --workdir=runs/bert --to=models/bert
      tfx export --workdir=runs/m30k --to=models/m30k-ct2 --format=ctranslate2
      tfx export --workdir=runs/m30k --to=models/m30k-jax --format=jax --shape=8,64
    """
    lock.check(to)
    chosen = changed(workdir, overrides)
    from tfx import hosts, translate
    from tfx.lab import exchange

    hosts.keep_memory()
    exchange.check(to, format, shape)
    run = translate.load(workdir, step or None, config=chosen)
    for name in exchange.export(run, to, format, shape):
        print(f"{to}/{name}")
