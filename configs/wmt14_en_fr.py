"""WMT14 English-French, Transformer base and big: Vaswani et al. (2017).

    python scripts/prepare_data.py wmt14_en_fr --out data/wmt14_en_fr
    tfx train --config=wmt14_en_fr:big --workdir=runs/wmt14_en_fr
    tfx eval --workdir=runs/wmt14_en_fr --average=20

Variants: `:base` (the default; averages 5 checkpoints) and `:big`; for accelerators add
--config.train.dtype=bfloat16.

Time: 12 hours for base, 3.5 days for big, on eight P100 (the paper's section 5.2).
Score: BLEU on newstest2014 38.1 for base and 41.8 for big, tokenised (the paper's table 2,
fifth version; 41.0 for big in the first ones).
"""

from tfx.config import defaults, tiny, variant


def get_config(arg: str = ""):
    size, small = variant(arg, "base", "big")
    files = "data/wmt14_en_fr/{0}.en,data/wmt14_en_fr/{0}.fr"
    train, valid, test = (files.format(split) for split in ("train", "valid", "test"))
    c = defaults("transformer", size)
    c.model.dropout = 0.1  # for big too: 36M pairs regularise enough
    c.data.update(source="files", train=train, valid=valid, test=test)
    c.tokenizer.vocab = 32_000
    c.batch.tokens = 25_000
    c.hardware = "TPU|A100|H100|H200|B200: train.dtype=bfloat16"
    c.objective.update(label_smoothing=0.1, smoothing="tensor2tensor")
    c.optim.update(lr=1.0, schedule="noam", warmup=4000, b1=0.9, b2=0.98, eps=1e-9)
    c.train.steps = {"base": 100_000, "big": 300_000}[size]
    c.checkpoint.every = {"base": 1400, "big": 600}[size]  # ten minutes, on their hardware
    c.checkpoint.keep_last = {"base": 5, "big": 20}[size]
    c.decode.update(beam=4, penalty="gnmt", alpha=0.6, extra=50)
    return tiny(c) if small else c
