"""BERT, pre-training: Devlin et al. (2019), arXiv:1810.04805.

    tfx train --config=bert:base --workdir=runs/bert
    tfx eval --workdir=runs/bert
    tfx train --config=sst2:runs/bert --workdir=runs/bert-sst2

Variants: `:base` (the default), `:large`, and Google's later small ones, `:medium`, `:small` and
`:mini`; `:tiny` is two steps, as everywhere, and not the smallest of these.

Data: BooksCorpus and the English Wikipedia, 3.3 billion words, which nobody may pass on together:
data/books_wiki/train.txt and valid.txt have to be made, a sentence a line and an empty line after
each document. WikiText-103 (scripts/prepare_data.py) is a free start.

Time: 4 days for base on 16 TPU chips, for large on 64 (the paper's section A.2).
Score: GLUE test average 79.6 for base, 82.1 for large (the paper's table 1), after fine-tuning.

Differs from the paper: all steps read 512 tokens, where the authors read 128 in the first nine of
ten; Adam corrects its bias.
"""

from tfx.config import defaults, tiny, variant


def get_config(arg: str = ""):
    size, small = variant(arg, "base", "large", "medium", "small", "mini")
    c = defaults("bert", size, "masked_lm")
    # Ten copies of the text, masked once and for all, and paired: half of them at random.
    c.objective.update(pairs="next", static=True, copies=10)
    train, valid = "data/books_wiki/train.txt", "data/books_wiki/valid.txt"
    c.data.update(source="files", train=train, valid=valid, test=valid, max_length=512)
    c.tokenizer.update(vocab=30_522, lowercase=True)
    c.batch.tokens = 256 * 512
    c.hardware = "TPU|A100|H100|H200|B200: train.dtype=bfloat16"
    c.optim.update(name="adamw", lr=1e-4, schedule="linear", warmup=10_000, clip=1.0)
    c.optim.update(b1=0.9, b2=0.999, eps=1e-6, weight_decay=0.01)
    c.train.steps = 1_000_000
    c.eval.every = c.checkpoint.every = 5000
    return tiny(c) if small else c
