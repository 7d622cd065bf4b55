"""How fast does tfx translate, beside Hugging Face and CTranslate2 with the same weights?

    python scripts/bench_decode.py --workdir runs/multi30k --source test.en --peer-python PATH

The weights of a trained run are handed to `transformers` (MarianMTModel.generate) and to
CTranslate2, both float32, as plain arrays. All translate the same lines, greedily and with a
beam whose score is log-probability / length^alpha and which ends once as many hypotheses have
ended as there are beams (each of the three knows that rule). The peers run under
`--peer-python`, an interpreter that has them, each in the fastest of its settings; tfx as it
comes, its tokenizer included in the time. The share of translations that are the same as tfx's
stands beside the speed. See peers.py and interleave.py.
"""

import argparse
import dataclasses
import itertools
import json
import sys
import tempfile
from pathlib import Path
from statistics import median

import numpy as np
from interleave import Contender, fastest, interleave, ratio, serve, table, variants

import tfx
from tfx import config, hosts
from tfx.data import text
from tfx.data.tokenizer import EOS
from tfx.lab import exchange

PEERS = {
    "ctranslate2": ("CTranslate2", dict(threads=(1, 2), inter=(1, 2))),
    "marian": ("HF generate", dict(threads=(1, 2))),
}


def search(args, beam: int) -> dict:
    """The fields of `tfx.schema.Decode` that make the three search alike."""
    method = "beam" if beam > 1 else "greedy"
    return dict(method=method, beam=beam, alpha=args.alpha, penalty="length", stop="full")


def read_lines(args) -> list[str]:
    return list(itertools.islice(filter(str.strip, text.lines(args.source)), args.lines))


def tfx_worker(args):
    """A round translates all lines."""
    hosts.keep_memory()
    run, lines = tfx.load(args.workdir), read_lines(args)
    work = lambda: {"hypotheses": run.translate(lines, **search(args, args.worker))}
    work()
    return work


def write_task(args, run, path: Path) -> None:
    """The weights and the sentences; peers.py says what is in the file."""
    c = run.config.model
    if (c.norm, c.norm_kind, c.tie, c.position) != ("post", "layer", "all", "sinusoid"):
        raise SystemExit(f"{args.workdir}: the peers know the paper's layout only")
    decode = dataclasses.replace(run.config.decode, **search(args, args.beam))
    whole = config.to_json(dataclasses.replace(run.config, decode=decode))
    sentences = [np.int32([*ids, EOS]) for ids in run.tokenizer.source.encode(read_lines(args))]
    lengths, together = [len(ids) for ids in sentences], np.concatenate(sentences)
    arrays = exchange.marian_arrays(run) | dict(sentences=together, lengths=lengths)
    np.savez(path, config=whole, vocab=run.tokenizer.vocab_sizes[1], **arrays)


def contend(args, task: Path, beam: int) -> list[Contender]:
    """tfx and the peers, each in its fastest setting, after their rounds."""
    flags = ["--workdir", args.workdir, "--source", args.source, "--lines", str(args.lines)]
    flags += ["--alpha", str(args.alpha), "--worker", str(beam)]
    lines = len(read_lines(args))
    contenders = [Contender("tfx", [sys.executable, __file__, *flags], lines)]
    peers = [str(args.peer_python), str(Path(__file__).with_name("peers.py")), "decode"]
    for system, (name, choices) in PEERS.items() if args.peer_python else ():
        command = [*peers, str(task), f"--system={system}", f"--beam={beam}"]
        choices = choices | dict(rows=args.rows)
        contenders.append(fastest(variants(name, command, lines, **choices)))
    interleave(contenders, args.rounds)
    return contenders


def show(run, beam: int, contenders: list[Contender]) -> list[dict[str, str]]:
    mine = contenders[0].replies[0]["hypotheses"]
    first = f"translating, {f'beam {beam}' if beam > 1 else 'greedy'}"
    rows = []
    for contender in contenders:
        theirs, rates = contender.replies[0]["hypotheses"], contender.rates()
        if contender is not contenders[0]:
            theirs = run.tokenizer.target.decode(theirs)
        same = sum(a == b for a, b in zip(mine, theirs, strict=True)) / len(mine)
        rows.append(
            {
                first: ", ".join(filter(None, (contender.name, contender.setting))),
                "sentences/s": f"{median(rates):,.1f}",
                "lowest-highest": f"{min(rates):,.1f}-{max(rates):,.1f}",
                "a CPU second": f"{median(contender.rates('cpu_seconds')):,.1f}",
                "same as tfx": f"{same:.1%}",
                "tfx is faster by": f"{ratio(contenders[0], contender):.2f}",
            }
        )
    missing = list(PEERS.values())[len(contenders) - 1 :]
    return rows + [{first: f"{name}: not measured: no --peer-python"} for name, _ in missing]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True, help="of a trained run")
    parser.add_argument("--source", required=True, help="a file of source lines")
    parser.add_argument("--lines", type=int, default=500, help="of them; empty ones not counted")
    parser.add_argument("--beam", type=int, default=5)
    parser.add_argument("--alpha", type=float, default=1.0, help="exponent of the length")
    parser.add_argument("--rows", type=int, nargs="+", default=[32, 64], help="peers' batches")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peer-python", help="an interpreter with transformers and ctranslate2")
    parser.add_argument("--json", type=Path, help="write every round here")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return serve(lambda: tfx_worker(args))
    run, told = tfx.load(args.workdir), {}
    with tempfile.TemporaryDirectory() as folder:
        task = Path(folder) / "task.npz"
        write_task(args, run, task)
        for beam in (1, args.beam):
            contenders = contend(args, task, beam)
            rows = show(run, beam, contenders)
            print(table(rows), end="\n\n", flush=True)
            rounds = {f"{c.name}, {c.setting}": c.replies for c in contenders}
            told[f"beam {beam}"] = {"rows": rows, "rounds": rounds}
    if args.json:
        args.json.write_text(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
