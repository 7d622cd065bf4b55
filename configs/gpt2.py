"""GPT-2, pre-training: Radford et al. (2019), Unsupervised Multitask Learners.

    python scripts/prepare_data.py wikitext2 --out data/wikitext2
    tfx train --config=gpt2:small --workdir=runs/gpt2
    tfx eval --workdir=runs/gpt2 --config.objective.stride=512 --config.objective.whole=true
    tfx generate --workdir=runs/gpt2 --prompt="In a shocking finding,"

Variants: `:small` (the default), `:medium`, `:large`, `:xl`.

Data: WebText, 40 GB, was never given out; OpenWebText stands in for it, a document a line of
data/openwebtext/train.jsonl and valid.jsonl, {"text": ...}. What is scored is WikiText-2.

Time: 4 days for small on 8 A100 of 40 GB (nanoGPT's readme, which trains as this does).
Score: perplexity on WikiText-2, never trained on it, 29.41, 22.76, 19.93, 18.34 (the paper's
table 3; with invertible de-tokenisers, so that ours on its raw text is higher).

Differs from the paper: it says neither rate nor steps; these are GPT-3's rates by size (Brown et
al., 2020, table 2.1), and nanoGPT's steps.
"""

from tfx.config import defaults, tiny, variant

RATES = {"small": 6e-4, "medium": 3e-4, "large": 2.5e-4, "xl": 2e-4}


def get_config(arg: str = ""):
    size, small = variant(arg, *RATES)
    c = defaults("gpt2", size, "causal_lm")
    train, valid = "data/openwebtext/train.jsonl", "data/openwebtext/valid.jsonl"
    c.data.update(source="files", train=train, valid=valid, test="data/wikitext2/test.txt")
    c.data.max_length = 1024
    c.tokenizer.vocab = 50_257
    c.batch.tokens = 512 * 1024
    c.hardware = "TPU|A100|H100|H200|B200: train.dtype=bfloat16"
    c.optim.update(name="adamw", lr=RATES[size], schedule="cosine", warmup=2000, clip=1.0)
    c.optim.update(b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1)
    c.train.steps = 600_000
    c.eval.every = c.checkpoint.every = 2000
    return tiny(c) if small else c
