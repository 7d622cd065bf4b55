"""RoBERTa, pre-training: Liu et al. (2019), arXiv:1907.11692.

    tfx train --config=roberta:base --workdir=runs/roberta
    tfx eval --workdir=runs/roberta
    tfx train --config=sst2:runs/roberta --workdir=runs/roberta-sst2

Variants: `:base` (the default) and `:large`. A step has 4 million tokens: --config.train.accum=16
and the like takes it in parts, whatever the machine.

Data: 160 GB of text: BooksCorpus and Wikipedia, CC-News, OpenWebText, Stories. They are plain
files, a text a line: data/roberta/train.txt, or several, --config.data.train="a.txt b.txt.gz".

Time: a day for large, 100,000 steps on 1,024 V100 (the paper's section 5); the half million of the
last row of its table 4, five times that.
Score: perplexity of masked tokens 3.77 for base at batches of 8,000 (the paper's table 3, on
BooksCorpus and Wikipedia alone); SST-2 94.8 for base and 96.4 for large, after fine-tuning.

Differs from the paper: rows are cut out of the text wherever they end, not at ends of sentences.
"""

from tfx.config import defaults, tiny, variant


def get_config(arg: str = ""):
    size, small = variant(arg, "base", "large")
    c = defaults("roberta", size, "masked_lm")
    c.objective.recipe = "roberta"
    train, valid = "data/roberta/train.txt", "data/roberta/valid.txt"
    c.data.update(source="files", train=train, valid=valid, test=valid, max_length=512)
    c.tokenizer.vocab = 50_265
    c.batch.tokens = 8192 * 512
    c.hardware = "TPU|A100|H100|H200|B200: train.dtype=bfloat16"
    c.optim.update(name="adamw", schedule="linear", b1=0.9, b2=0.98, eps=1e-6, weight_decay=0.01)
    c.optim.update(
        {"base": dict(lr=6e-4, warmup=24_000), "large": dict(lr=4e-4, warmup=30_000)}[size]
    )
    c.train.steps = 500_000
    c.eval.every = c.checkpoint.every = 5000
    return tiny(c) if small else c
