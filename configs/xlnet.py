"""XLNet, pre-training: Yang et al. (2019), arXiv:1906.08237.

    tfx train --config=xlnet:large --workdir=runs/xlnet
    tfx eval --workdir=runs/xlnet
    tfx train --config=sst2:runs/xlnet --workdir=runs/xlnet-sst2

Variants: `:large` (the default) and `:base`. A step has 4 million tokens: --config.train.accum=16
and the like takes it in parts.

Data: BooksCorpus, Wikipedia, Giga5, ClueWeb 2012-B and Common Crawl, 33 billion pieces:
data/xlnet/train.txt and valid.txt, a sentence a line.

Time: 5.5 days for large on 512 TPU v3 chips (the paper's section 3.1).
Score: SQuAD 2.0 dev 87.9 EM, 90.6 F1, SST-2 dev 97.0 for large, after fine-tuning (the paper's
tables 3 and 5).

Differs from the paper: memory is made of the 384 tokens before a row, not kept from the batch
before. All rows run forwards, where the authors turn half of a batch round. The rate ends at 0, not
at a thousandth of its peak.
"""

from tfx.config import defaults, tiny, variant


def get_config(arg: str = ""):
    size, small = variant(arg, "large", "base")
    c = defaults("xlnet", size, "permutation_lm")
    c.objective.update(predictions=85, reuse=256, memory=384)
    train, valid = "data/xlnet/train.txt", "data/xlnet/valid.txt"
    c.data.update(source="files", train=train, valid=valid, test=valid, max_length=512)
    c.tokenizer.vocab = 32_000
    c.batch.tokens = 8192 * 512
    c.hardware = "TPU|A100|H100|H200|B200: train.dtype=bfloat16"
    c.optim.update(name="adamw", lr=4e-4, schedule="linear", warmup=40_000, clip=1.0)
    c.optim.update(b1=0.9, b2=0.999, eps=1e-6, weight_decay=0.01)
    c.train.steps = 500_000
    c.eval.every = c.checkpoint.every = 5000
    return tiny(c) if small else c
