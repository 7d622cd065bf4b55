"""How fast does tfx train, beside Hugging Face's Marian model and torch.nn.Transformer?

    python scripts/bench_train.py --data data/multi30k --peer-python PATH --json out.json

All contenders take the same steps on the same batches: forward, label-smoothed loss, backward
and Adam, float32, dropout 0.1 (attention weights too), label smoothing 0.1. Counted are target
tokens that are not padding. The peers run under `--peer-python`, an interpreter that has torch
and transformers, each in the fastest of its settings (one or two threads, OpenMP waiting as
it likes or passively); see peers.py and interleave.py. More rows say what tfx makes of other
ways to batch the same text: packed, and padded to fixed lengths as flax's WMT example does.
Model S is Multi30k's Transformer-Tiny, model B the base model, big the paper's big one.

--gpu compares on a GPU: bfloat16 (autocast there), no dropout on attention weights so that both
sides may use a fused kernel, peers eager and compiled. Model TFLOP/s are by tfx/flops.py,
padding counted; over the GPU's peak they are its MFU.
"""

import argparse
import dataclasses
import json
import sys
import tempfile
from pathlib import Path
from statistics import median

import jax
import numpy as np
from interleave import Contender, fastest, interleave, ratio, serve, table, variants

from tfx import assemble, config, flops, hosts, models, optim, sharding, train
from tfx.setup import create_state, init_state

SIZES = {
    "S": dict(width=128, depth=4, heads=4, mlp=256),
    "B": {},
    "big": dict(width=1024, heads=16, mlp=4096),
}
PEERS = {"marian": "HF Marian", "torch": "torch.nn.Transformer"}


def settings(args) -> config.Config:
    c = config.defaults("transformer", "base")
    c.model.update(SIZES[args.model], dropout=0.1, attention_dropout=0.0 if args.gpu else 0.1)
    c.train.dtype = "bfloat16" if args.gpu else "float32"
    files = f"{args.data}/{{0}}.en.gz,{args.data}/{{0}}.de.gz"
    c.data.update(source="files", train=files.format("train"), valid=files.format("val"))
    c.tokenizer.vocab = args.vocab
    c.batch.tokens = args.tokens
    return config.freeze(c)


def write_batches(args, folder: Path) -> dict[str, Path]:
    """A file of batches for each way to make them; peers.py says what is in it."""
    c = settings(args)
    ids = assemble.open_tokenizer(c, folder)

    def batches(**batch):
        changed = dataclasses.replace(c, batch=dataclasses.replace(c.batch, **batch))
        made = assemble.open_batches(changed, ids, folder, "train", multiple=1)
        return [made.batch(step) for step in range(args.steps)]

    def widened(batch, length):
        # One bucket holds all lengths, so its rows are a fair sample of the text.
        rows = args.tokens // length
        return {k: np.pad(x[:rows], ((0, 0), (0, length - x.shape[1]))) for k, x in batch.items()}

    kinds = {"buckets": batches(), "packed": batches(kind="pack")}
    for length in args.fixed:
        kinds[f"length {length}"] = [widened(batch, length) for batch in batches(shapes=1)]
    paths = {}
    for kind, made in kinds.items():
        paths[kind] = folder / f"{kind}.npz"
        arrays = {f"{i}/{name}": x for i, batch in enumerate(made) for name, x in batch.items()}
        np.savez(paths[kind], config=config.to_json(c), vocab=ids.vocab_sizes[1], **arrays)
    return paths


def count(path: Path) -> dict[str, int]:
    """Tokens of both sides in a file of batches, the positions that they lie in, and the FLOPs
    of a step on each."""
    file = np.load(path)
    names = ("source", "target_out")
    sides = {name: [file[k] for k in file if k.endswith(f"/{name}")] for name in names}
    tokens = {name: sum(int((x > 0).sum()) for x in arrays) for name, arrays in sides.items()}
    c = config.from_json(str(file["config"]))
    model = dataclasses.replace(c.model, vocab=int(file["vocab"]))
    shapes = [(*x.shape, y.shape[1]) for x, y in zip(*sides.values(), strict=True)]
    return tokens | {
        "positions": sum(x.size for arrays in sides.values() for x in arrays),
        "flops": sum(flops.training(model, shape) for shape in shapes),
    }


def tfx_worker(path: str):
    """A round is one step on each batch of a file."""
    hosts.keep_memory()
    file = np.load(path)
    c = config.from_json(str(file["config"]))
    vocab = int(file["vocab"])
    model = models.build(dataclasses.replace(c.model, vocab=vocab, source_vocab=vocab))
    tx = optim.build(c.optim, c.train.steps, c.model.width)
    mesh = sharding.make_mesh(**dataclasses.asdict(c.mesh))
    _, shardings = init_state(c, model, tx, mesh)
    state = create_state(c, model, tx, shardings)
    step = train.make_train_step(c, assemble.make_loss(c, model), tx, shardings)
    batches = {}
    for key in file:
        if "/" in key:
            number, name = key.split("/")
            batches.setdefault(int(number), {})[name] = file[key]
    batches = [sharding.put_batch(batch, mesh) for batch in batches.values()]

    def work(batches=batches):
        nonlocal state
        sums = []
        with jax.set_mesh(mesh):
            for batch in batches:
                state, found = step(state, batch)
                sums.append(found)
        losses = [float(found["loss"] / found["weight"]) for found in jax.device_get(sums)]
        return {"loss": sum(losses) / len(losses)}

    work({batch["source"].shape: batch for batch in batches}.values())
    return work


def contend(args, paths: dict[str, Path]) -> dict[str, Contender]:
    """All contenders after their rounds, by the file or the system."""
    amounts = {kind: count(path)["target_out"] for kind, path in paths.items()}
    contenders = {}
    for kind, path in paths.items():
        command = [sys.executable, __file__, "--worker", str(path)]
        contenders[kind] = Contender("tfx", command, amounts[kind], kind)
    peers = [str(args.peer_python), str(Path(__file__).with_name("peers.py")), "train"]
    for system, name in PEERS.items() if args.peer_python else ():
        command = [*peers, str(paths["buckets"]), f"--system={system}"]
        if args.gpu:
            command += ["--device=cuda", "--bf16"]
        choices = dict(compile=(0, 1)) if args.gpu else dict(threads=(1, 2))
        contenders[system] = fastest(variants(name, command, amounts["buckets"], **choices))
    interleave(list(contenders.values()), args.rounds)
    return contenders


def show(args, paths: dict[str, Path], contenders: dict[str, Contender]) -> list[dict[str, str]]:
    first, rows = f"training, model {args.model}", []
    speed = lambda system: median(contenders[system].rates())
    best = max((system for system in PEERS if system in contenders), key=speed, default="buckets")
    for kind, contender in contenders.items():
        tokens, rates = count(paths.get(kind, paths["buckets"])), contender.rates()
        both = tokens["source"] + tokens["target_out"]
        rows.append(
            {
                first: f"{contender.name}, {contender.setting}",
                "target tokens/s": f"{median(rates):,.0f}",
                "lowest-highest": f"{min(rates):,.0f}-{max(rates):,.0f}",
                "both sides": f"{median(rates) * both / tokens['target_out']:,.0f}",
                "a CPU second": f"{median(contender.rates('cpu_seconds')):,.0f}",
                "no padding": f"{both / tokens['positions']:.0%}",
                "model TFLOP/s": f"{median(rates) / contender.count * tokens['flops'] / 1e12:.3g}",
                f"times {contenders[best].name}": f"{ratio(contender, contenders[best]):.2f}",
            }
        )
    missing = [name for system, name in PEERS.items() if system not in contenders]
    return rows + [{first: f"{name}: not measured: no --peer-python"} for name in missing]


def main():
    about = __doc__.splitlines()[0]
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--model", choices=SIZES, default="S")
    parser.add_argument("--data", default="data/multi30k", help="folder of train.{en,de}.gz")
    parser.add_argument("--gpu", action="store_true", help="bfloat16 on a GPU")
    parser.add_argument("--vocab", type=int, default=10_000)
    parser.add_argument("--tokens", type=int, default=4096, help="padded tokens a side and batch")
    parser.add_argument("--fixed", type=int, nargs="*", default=[64, 256], help="fixed lengths")
    parser.add_argument("--steps", type=int, default=8, help="of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peer-python", help="an interpreter with torch and transformers")
    parser.add_argument("--json", type=Path, help="write every round here")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return serve(lambda: tfx_worker(args.worker))
    with tempfile.TemporaryDirectory() as folder:
        paths = write_batches(args, Path(folder))
        contenders = contend(args, paths)
        rows = show(args, paths, contenders)
    print(table(rows))
    if args.json:
        rounds = {f"{c.name}, {c.setting}": c.replies for c in contenders.values()}
        args.json.write_text(json.dumps({"rows": rows, "rounds": rounds}, indent=1))


if __name__ == "__main__":
    main()
