"""WMT14 English-German, Transformer base and big: Vaswani et al. (2017).

    python scripts/prepare_data.py wmt14_en_de --out data/wmt14_en_de
    tfx train --config=wmt14_en_de:base --workdir=runs/wmt14_en_de
    tfx eval --workdir=runs/wmt14_en_de --average=5

Variants: `:base` (the default; 63M parameters), `:big` (averages 20 checkpoints), and every other
row of the paper's table 3, such as `:C.n2`, `:E.learned` or `:D.ls0` (`tfx list` names them; that
table scores newstest2013 without averaging). For accelerators add --config.train.dtype=bfloat16.

Time: 12 hours for base, 3.5 days for big, on eight P100 (the paper's table 2 and section 5.2).
Score: BLEU on newstest2014 27.3 for base and 28.4 for big, tokenised, compounds split
(the paper's table 2). sacreBLEU is lower: 27.5 for an output that scores 29.0 their way
(Popel, tensor2tensor issue 317).
"""

from tfx.config import defaults, tiny, variant
from tfx.models.transformer import SIZES

SMOOTHING = {"D.ls0": 0.0, "D.ls2": 0.2}  # the rows of table 3 that change no size


def get_config(arg: str = ""):
    row, small = variant(arg, *SIZES, *SMOOTHING)
    files = "data/wmt14_en_de/{0}.en,data/wmt14_en_de/{0}.de"
    train, valid, test = (files.format(split) for split in ("train", "valid", "test"))
    c = defaults("transformer", "base" if row in SMOOTHING else row)
    c.data.update(source="files", train=train, valid=valid, test=test)
    c.tokenizer.vocab = 37_000
    c.batch.tokens = 25_000
    c.hardware = "TPU|A100|H100|H200|B200: train.dtype=bfloat16"
    c.objective.update(label_smoothing=SMOOTHING.get(row, 0.1), smoothing="tensor2tensor")
    c.optim.update(lr=1.0, schedule="noam", warmup=4000, b1=0.9, b2=0.98, eps=1e-9)
    c.train.steps = 300_000 if row == "big" else 100_000
    c.checkpoint.every = 600 if row == "big" else 1400  # ten minutes, on their hardware
    c.checkpoint.keep_last = 20 if row == "big" else 5
    c.decode.update(beam=4, penalty="gnmt", alpha=0.6, extra=50)
    return tiny(c) if small else c
