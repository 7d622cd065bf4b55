"""Multi30k English-German, Transformer-Tiny: Wu et al. (2021), arXiv:2105.14462.

    python scripts/prepare_data.py multi30k --out data/multi30k
    tfx train --config=multi30k --workdir=runs/multi30k
    tfx eval --workdir=runs/multi30k --average=10

Variants: `multi30k:raw`, the default, reads the plain sentences; `multi30k:tok` reads the
lower-cased, tokenised ones that the paper used.

Time: about 4 hours on 2 CPU cores (an estimate: 50 million target tokens at 3,700 a second).
Score: BLEU 41.02 on test_2016_flickr, lower-cased and tokenised, 2.6M parameters (the
paper's text-only Tiny; `:tok`, early stopping, the last 10 epochs averaged, beam 5).

Differs from the paper: SentencePiece's BPE of 10,000 pieces, not subword-nmt's 10,000
merges; an epoch counts as 60 steps.
"""

from tfx.config import defaults, tiny, variant


def get_config(arg: str = ""):
    text, small = variant(arg, "raw", "tok")
    files = "data/multi30k/{0}.en.gz,data/multi30k/{0}.de.gz"
    if text == "tok":
        files = "data/multi30k/tok/{0}.lc.norm.tok.en,data/multi30k/tok/{0}.lc.norm.tok.de"
    train, valid, test = (files.format(s) for s in ("train", "val", "test_2016_flickr"))
    c = defaults("transformer", "base")
    c.model.update(width=128, depth=4, heads=4, mlp=256, dropout=0.3)
    c.data.update(source="files", train=train, valid=valid, test=test)
    c.tokenizer.vocab = 10_000
    c.batch.tokens = 8192  # two devices with 4096
    c.optim.update(lr=5e-3, schedule="rsqrt", warmup=2000, eps=1e-8, clip=25.0)
    c.train.steps = 8000
    c.eval.update(every=60, patience=10)
    if text == "tok":
        c.eval.update(tokenize="none", tokenized=True)
    c.checkpoint.update(every=60, keep_last=10)
    c.decode.update(beam=5, penalty="length", alpha=1.0)
    return tiny(c) if small else c
