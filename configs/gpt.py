"""GPT, pre-training: Radford et al. (2018), Generative Pre-Training.

    tfx train --config=gpt:base --workdir=runs/gpt
    tfx eval --workdir=runs/gpt
    tfx generate --workdir=runs/gpt --prompt="Once upon a time"

Data: BooksCorpus, 800 million words of novels, which is not given out any more:
data/books/train.txt and valid.txt are any long text, line ends being part of it.

Time: a month on 8 GPUs (the authors' announcement).
Score: perplexity of a token 18.4 on BooksCorpus (the paper's section 4.1).

Differs from the paper: byte-level BPE, not BPE of lower-cased words; 100 epochs are steps here,
counted for a billion tokens.
"""

from tfx.config import defaults, tiny, variant


def get_config(arg: str = ""):
    size, small = variant(arg, "base")
    c = defaults("gpt", size, "causal_lm")
    c.objective.whole = True
    train, valid = "data/books/train.txt", "data/books/valid.txt"
    c.data.update(source="files", train=train, valid=valid, test=valid, max_length=512)
    c.tokenizer.vocab = 40_478
    c.batch.tokens = 64 * 512
    c.hardware = "TPU|A100|H100|H200|B200: train.dtype=bfloat16"
    c.optim.update(name="adamw", lr=2.5e-4, schedule="cosine", warmup=2000, clip=1.0)
    c.optim.update(b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.01)
    c.train.steps = 3_000_000
    c.eval.every = c.checkpoint.every = 5000
    return tiny(c) if small else c
