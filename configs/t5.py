"""T5, pre-training: Raffel et al. (2020), arXiv:1910.10683, and its version 1.1.

    tfx train --config=t5:base --workdir=runs/t5
    tfx eval --workdir=runs/t5
    tfx train --config=summarise:runs/t5 --workdir=runs/t5-scitldr

Variants: `:small` (the default), `:base`, `:large`, `:3b`, `:11b` by the recipe of the paper's
baseline (section 3.1.2); `:v1_1-small`, `-base`, `-large`, `-xl`, `-xxl` as version 1.1 was
trained: a million steps of a million tokens, without dropout.

Data: C4, from TensorFlow Datasets (c4/en, which takes a cluster to build). Any text will do:
--config.data.source=files --config.data.train=text.txt --config.data.valid=held_out.txt.

Time: days on a TPU pod (the paper says none).
Score: GLUE 83.28, SQuAD EM 80.88 for base, after fine-tuning (the paper's table 1); small, trained
on 32 times as much and on all tasks: GLUE test 77.4, SQuAD F1 87.24 (table 14).

Differs from the paper: texts are not packed, but rows are cut out of them; the rate grows over the
first 10,000 steps, where the authors keep it at its peak. Small matrices keep whole second moments.
"""

from tfx.config import defaults, tiny, variant
from tfx.models.t5 import SIZES


def get_config(arg: str = ""):
    size, small = variant(arg, *SIZES)
    newer = size.startswith("v1_1")
    c = defaults("t5", size, "span_corruption")
    c.model.vocab = 32_128  # 28 rows that no piece needs
    if newer:
        c.model.update(dropout=0.0, attention_dropout=0.0, mlp_dropout=0.0)
    c.objective.z_loss = 1e-4
    c.data.update(source="tfds:c4/en", train="train", valid="validation", test="validation")
    c.data.update(fields="text", max_length=512)
    c.tokenizer.vocab = 32_100
    c.batch.tokens = (2048 if newer else 128) * 512
    c.hardware = "TPU|A100|H100|H200|B200: train.dtype=bfloat16"
    c.optim.update(name="adafactor", lr=0.01, schedule="rsqrt", warmup=10_000, eps=1e-30)
    c.train.steps = 1_000_000 if newer else 2**19
    c.eval.every = c.checkpoint.every = 5000
    return tiny(c) if small else c
