"""How do time and memory of a training step grow with the model, the batch and the devices?

    python scripts/bench_scaling.py --out scaling
    python scripts/bench_scaling.py --vary width depth --devices 8

One thing varies at a time, from a small base point. A row: the median time of a step, target
tokens a second, memory a device as the compiler plans it, the FLOPs that the formula of
tfx/flops.py counts, how many of them a second; and by which power of them the time has grown
since the row before: 1 where arithmetic decides, less where something that stays the same still
does, more where memory does. A last line compares the first row with the last.

On a CPU, --devices are simulated: they share its cores, so that a perfect program takes the same
time on any number of them for the same batch. --out writes scaling.json, and scaling.png where
matplotlib is installed.
"""

import argparse
import json
import math
import os
import sys
import time
from pathlib import Path
from statistics import median

BASE = dict(width=128, depth=2, length=32, rows=32, devices=1)
VARIED = {
    "width": (64, 128, 256, 512),
    "depth": (1, 2, 4, 8),
    "length": (16, 32, 64, 128, 256),
    "rows": (8, 16, 32, 64, 128),
    "devices": (1, 2, 4, 8),
}


def step_of(point: dict):
    """The jitted training step of a point, its state and a batch, and the model's config."""
    import jax
    import numpy as np

    from tfx import assemble, config, optim, sharding
    from tfx import train as training
    from tfx.setup import create_state, init_state

    c = config.defaults("transformer", "base")
    width = point["width"]
    c.model.update(width=width, depth=point["depth"], heads=max(width // 32, 1), mlp=4 * width)
    c = config.freeze(c)
    model = assemble.build_model(c, argparse.Namespace(vocab_sizes=(8192, 8192)))
    mesh = sharding.make_mesh(devices=jax.devices()[: point["devices"]])
    rng, shape = np.random.default_rng(0), (point["rows"], point["length"])
    ids = lambda: rng.integers(4, 8192, shape).astype(np.int32)
    batch = dict(source=ids(), target_in=ids(), target_out=ids())
    batch["weights"] = np.ones(shape, np.float32)
    tx = optim.build(c.optim, c.train.steps, width)
    _, shardings = init_state(c, model, tx, mesh)
    step = training.make_train_step(c, assemble.make_loss(c, model), tx, shardings)
    state = create_state(c, model, tx, shardings)
    return mesh, step, state, sharding.put_batch(batch, mesh), model.config


def measure(point: dict, seconds: float) -> dict:
    """One row."""
    import jax

    from tfx import flops

    shape = (point["rows"], point["length"], point["length"])
    mesh, step, state, batch, model = step_of(point)
    with jax.set_mesh(mesh):
        needs = step.lower(state, batch).compile().memory_analysis()
        state, _ = jax.block_until_ready(step(state, batch))
        times, end = [], time.perf_counter() + seconds
        while len(times) < 3 or time.perf_counter() < end:
            began = time.perf_counter()
            state, sums = step(state, batch)
            jax.block_until_ready(sums)
            times.append(time.perf_counter() - began)
    count, kind = flops.training(model, shape), jax.devices()[0].device_kind
    return {
        "milliseconds": 1e3 * median(times),
        "target tokens/s": math.prod(shape[:2]) / median(times),
        "MiB a device": (needs.argument_size_in_bytes + needs.temp_size_in_bytes) / 2**20,
        "GFLOP": count / 1e9,
        "GFLOP/s": count / 1e9 / median(times),
        "MFU": flops.mfu(count, median(times), point["devices"], kind),
    }


def power(before: dict, after: dict) -> float | None:
    """p where time grew as FLOPs^p; None where the FLOPs are the same."""
    grown = after["GFLOP"] / before["GFLOP"]
    if math.isclose(grown, 1):
        return None
    return math.log(after["milliseconds"] / before["milliseconds"]) / math.log(grown)


def show(name: str, values, rows: list[dict]) -> None:
    columns = [*rows[0], "time ~ FLOPs^"]
    print("| " + " | ".join([name, *columns]) + " |")
    print("|" + " ---: |" * (len(columns) + 1))
    for i, (value, row) in enumerate(zip(values, rows, strict=True)):
        p = power(rows[i - 1], row) if i else None
        cells = ["-" if x is None else f"{x:,.3g}" if x < 1 else f"{x:,.1f}" for x in row.values()]
        print("| " + " | ".join([str(value), *cells, "-" if p is None else f"{p:.2f}"]) + " |")
    p = power(rows[0], rows[-1])
    slower = rows[-1]["milliseconds"] / rows[0]["milliseconds"]
    said = "the same FLOPs" if p is None else f"time ~ FLOPs^{p:.2f}"
    print(
        f"\n{name} {values[0]} to {values[-1]}: {slower:.2f} times the time, {said}\n", flush=True
    )


def draw(told: dict, path: Path) -> None:
    """Time and memory, log-log, a line for each thing varied."""
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.5))
    for name, rows in told.items():
        x = [float(value) / float(next(iter(rows))) for value in rows]
        left.plot(x, [r["milliseconds"] for r in rows.values()], "o-", label=name)
        right.plot(x, [r["MiB a device"] for r in rows.values()], "o-", label=name)
    for axes, title in ((left, "milliseconds a step"), (right, "MiB a device")):
        axes.set(xlabel="times the first value", title=title)
        for axis, set_scale in ((axes.xaxis, axes.set_xscale), (axes.yaxis, axes.set_yscale)):
            set_scale("log", base=2)
            axis.set_major_formatter("{x:g}")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vary", nargs="+", choices=VARIED, default=list(VARIED))
    parser.add_argument("--devices", type=int, default=8, help="simulated ones, on a CPU")
    parser.add_argument("--seconds", type=float, default=3, help="of measuring, a row")
    parser.add_argument("--out", type=Path, help="a folder for scaling.json and scaling.png")
    args = parser.parse_args()
    simulated = f" --xla_force_host_platform_device_count={args.devices}"
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + simulated
    import jax

    from tfx import hosts

    hosts.keep_memory()
    hosts.keep_compiled()
    told = {}
    for name in args.vary:
        values = [v for v in VARIED[name] if name != "devices" or v <= jax.device_count()]
        rows = [measure(BASE | {name: value}, args.seconds) for value in values]
        base = ", ".join(f"{k} {v}" for k, v in BASE.items() if k != name)
        print(f"{base}; {jax.devices()[0].device_kind}\n")
        show(name, values, rows)
        told[name] = dict(zip(map(str, values), rows, strict=True))
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "scaling.json").write_text(json.dumps(told, indent=1))
        try:
            draw(told, args.out / "scaling.png")
        except ModuleNotFoundError:
            print("no plot: pip install matplotlib", file=sys.stderr)


if __name__ == "__main__":
    main()
