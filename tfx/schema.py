"""Every key of a config: its type, its default, its bounds.

Bounds are written in the annotation, as a condition on `x`; `tfx.config` checks them and
quotes them in the error. Sections name what they are for; `model` is the Config of a file
in tfx/models.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

Count = Annotated[int, "x >= 0"]
Positive = Annotated[int, "x >= 1"]
Rate = Annotated[float, "0 <= x < 1"]
Schedule = Literal["noam", "rsqrt", "linear", "cosine", "constant"]
Axis = Annotated[int, "x >= -1", "x != 0"]


@dataclass(frozen=True)
class Data:
    """Where examples come from."""

    source: str = "synthetic"  # synthetic | files | tfds:NAME
    train: str = "train"  # files: "a.en,a.de"; more corpora after a space; TFDS: a split
    valid: str = "valid"
    test: str = "test"
    fields: str = ""  # JSONL keys, TSV columns (numbers, or names of its header), TFDS features
    max_length: Positive = 256  # tokens of a row, a side each; what is longer: dropped, counted
    truncate: bool = False  # instead of dropped: cut, counted


@dataclass(frozen=True)
class Tokenizer:
    """How text becomes ids. Trained on first use, kept in the workdir."""

    # bpe, unigram, bytes: of translation; the others: as the families keep theirs
    kind: Literal["bpe", "unigram", "bytes", "chars", "bert", "roberta", "gpt2", "t5", "xlnet"] = (
        "bpe"
    )
    vocab: Positive = 8000  # pieces, the special ones included; bytes, chars: ignored
    joint: bool = True  # one vocabulary for both sides
    sampling: Rate = 0.0  # BPE-dropout probability, or the unigram model's alpha
    lowercase: bool = False
    path: str = ""  # what to use instead: a SentencePiece model, a workdir, a Hugging Face folder


@dataclass(frozen=True)
class Batch:
    """How examples become arrays of few static shapes."""

    tokens: Positive = 4096  # padded tokens a side, per step, over all devices
    kind: Literal["bucket", "pack"] = "bucket"
    shapes: Positive = 5  # bucket: static shapes at most; pack: always one


@dataclass(frozen=True)
class Optim:
    """How parameters move. `name` is any optimiser of optax."""

    name: str = "adam"
    lr: Annotated[float, "x > 0"] = 1.0  # noam: the factor; others: the peak
    schedule: Schedule = "noam"
    warmup: Count = 4000
    b1: Rate = 0.9
    b2: Rate = 0.98
    eps: Annotated[float, "x > 0"] = 1e-9
    weight_decay: Annotated[float, "x >= 0"] = 0.0  # matrices only
    clip: Annotated[float, "x >= 0"] = 0.0  # global norm; 0: off
    ema: Rate = 0.0  # decay of the moving average of parameters; 0: off
    layer_decay: Annotated[float, "0 < x <= 1"] = 1.0  # rate of a layer, of that of the one above
    frozen: str = ""  # a regex of parameter paths, layers numbered: what never moves


@dataclass(frozen=True)
class Train:
    """How long, how precise, how often something is said."""

    steps: Positive = 100_000
    accum: Positive = 1  # micro-batches a step; batch.tokens is divided among them
    dtype: Literal["float32", "bfloat16"] = "float32"  # of compute; parameters stay float32
    log_every: Positive = 100
    watchdog: Count = 3600  # seconds without a finished step that end the process; 0: never


@dataclass(frozen=True)
class Eval:
    """Validation while training."""

    every: Count = 1000  # steps between validation losses; 0: never
    bleu_every: Count = 0  # steps between validation BLEU; 0: never
    sentences: Count = 0  # for BLEU: the first so many of the split; 0: all
    monitor: Literal["loss", "bleu", "accuracy"] = "loss"  # what "best" and patience look at
    metric: Literal["bleu", "rouge"] = "bleu"  # of texts: translations or summaries
    patience: Count = 0  # evaluations without a gain before stopping; 0: off
    tokenize: Literal["13a", "intl", "zh", "ja-mecab", "ko-mecab", "char", "none"] = "13a"  # BLEU
    tokenized: bool = False  # the text comes tokenised: bleu_tok_lc splits at spaces alone


@dataclass(frozen=True)
class Checkpoint:
    """What is kept. The three rules add up."""

    every: Positive = 1000
    keep_last: Positive = 3
    keep_best: Count = 1
    keep_every: Count = 0  # steps; 0: none kept for good


@dataclass(frozen=True)
class Decode:
    """How translations are searched for."""

    method: Literal["beam", "greedy", "sample"] = "beam"
    beam: Positive = 4  # beams, or samples a sentence
    alpha: Annotated[float, "x >= 0"] = 0.6
    penalty: Literal["gnmt", "length"] = "gnmt"  # ((5+n)/6)^alpha | n^alpha
    stop: Literal["exact", "current", "full"] = "exact"  # tfx/decode.py, beam_search
    unended: Literal["last", "ranked"] = "last"  # what is cut off: behind all that ended, or among
    no_repeat: Count = 0  # no so many tokens in a row a second time; 0: off
    extra: Count = 50  # longest output = source length + extra
    temperature: Annotated[float, "x > 0"] = 1.0
    top_k: Count = 0  # 0: off
    top_p: Annotated[float, "0 < x <= 1"] = 1.0
    tokens: Positive = 2048  # source tokens a batch


@dataclass(frozen=True)
class Mesh:
    """Devices along each mesh axis; -1: all that remain. `--config.mesh=NAME` sets all four as
    the preset of that name says."""

    data: Axis = -1
    fsdp: Axis = 1
    tensor: Axis = 1
    sequence: Axis = 1


MESHES = {
    "dp": dict(data=-1, fsdp=1, tensor=1, sequence=1),  # parameters on every device
    "fsdp": dict(data=1, fsdp=-1, tensor=1, sequence=1),  # parameters and their updates cut up
    "tp": dict(data=1, fsdp=1, tensor=-1, sequence=1),  # heads, mlp and vocabulary cut up
    "fsdp_tp": dict(data=1, fsdp=-1, tensor=2, sequence=1),
    "sp": dict(data=1, fsdp=1, tensor=1, sequence=-1),  # long texts cut up
}


@dataclass(frozen=True)
class Config:
    """One run. `model` is the Config of a file in tfx/models, chosen by `model.name`; so is
    `objective`, of a file in tfx/objectives."""

    model: Any
    objective: Any
    seed: Count = 0
    init_from: str = ""  # a workdir, or a Hugging Face folder, to start from: all but the head
    data: Data = field(default_factory=Data)
    tokenizer: Tokenizer = field(default_factory=Tokenizer)
    batch: Batch = field(default_factory=Batch)
    optim: Optim = field(default_factory=Optim)
    train: Train = field(default_factory=Train)
    eval: Eval = field(default_factory=Eval)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    decode: Decode = field(default_factory=Decode)
    mesh: Mesh = field(default_factory=Mesh)
    hardware: str = ""  # "DEVICE REGEX: KEY=VALUE ...; ...": the first that matches is overridden


def misfits(c: Config) -> Iterator[str]:
    """What is wrong with values that are fine one by one."""
    evaluates = c.eval.every or c.eval.bleu_every
    positions = getattr(c.model, "max_length", c.data.max_length)
    if not re.fullmatch(r"synthetic|files|tfds:.+", c.data.source):
        yield f'data.source = "{c.data.source}": choose from synthetic, files, tfds:NAME'
    for rule in filter(str.strip, c.hardware.split(";")):
        if not re.fullmatch(r"[^:]+:(\s+[\w.]+=\S+)+\s*", rule):
            yield f'hardware: "{rule.strip()}": want DEVICE REGEX: KEY=VALUE ...; ...'
    if not c.data.train:
        yield 'data.train = "": say what to train on'
    if evaluates and not c.data.valid:
        yield 'data.valid = "": say what to evaluate on, or set eval.every and eval.bleu_every to 0'
    if c.eval.patience and not evaluates:
        yield f"eval.patience = {c.eval.patience}: needs eval.every or eval.bleu_every above 0"
    if c.eval.monitor == "bleu" and not c.eval.bleu_every:
        yield "eval.monitor = bleu: needs eval.bleu_every above 0"
    if c.data.max_length > positions:
        yield f"data.max_length = {c.data.max_length}: model.max_length allows only {positions}"
    if c.tokenizer.kind == "bytes" and c.tokenizer.sampling:
        yield f"tokenizer.sampling = {c.tokenizer.sampling}: bytes have one spelling; set 0"
    tie = getattr(c.model, "tie", "")
    if not c.tokenizer.joint and tie in ("all", "inputs"):
        yield f"model.tie = {tie}: set tokenizer.joint = true (one vocabulary), or tie = decoder"
    if c.optim.schedule in ("linear", "cosine") and c.optim.warmup >= c.train.steps:
        yield f"optim.warmup = {c.optim.warmup}: want less than train.steps = {c.train.steps}"
