"""WikiText-2 by a small model of a family, pre-trained as its paper does.

    python scripts/prepare_data.py wikitext2 --out data/wikitext2
    tfx train --config=wikitext2:gpt2 --workdir=runs/wikitext2
    tfx eval --workdir=runs/wikitext2 --config.objective.stride=32
    tfx train --config=wikitext2:bert --workdir=runs/bert-wikitext2
    tfx train --config=sst2:runs/bert-wikitext2 --workdir=runs/bert-sst2

Variants: `:gpt2` (the default; the next token), `:bert` (masked tokens), `:xlnet` (permutations),
`:t5` (spans that were cut out). All have 4 layers of 256, and 8,000 pieces of their own kind.

BERT has rotary positions and norms before its blocks: with those of its paper, learned, so small a
model knows but the frequencies of words after a whole epoch. T5 has its paper's Adafactor, which
takes steps in proportion to a parameter: its embeddings start with a deviation of 1.

Time: on 2 CPU cores 80 minutes for 3,000 steps of T5 (measured), an hour and a half for
the others (an estimate).
Score: GPT-2 small has a perplexity of 29.41 without being trained on it (its paper's table 3); a
model of this size, from two million words alone, is far from that. The others predict other things.
"""

from tfx.config import defaults, tiny, variant

OBJECTIVES = {  # the size whose shape is changed, what is learned, and how
    "gpt2": ("nano", "causal_lm", dict(whole=True)),
    "bert": ("mini", "masked_lm", dict(recipe="roberta")),
    "xlnet": ("base", "permutation_lm", dict()),
    "t5": ("small", "span_corruption", dict(whole=True)),
}


def get_config(arg: str = ""):
    family, small = variant(arg, *OBJECTIVES)
    size, objective, settings = OBJECTIVES[family]
    c = defaults(family, size, objective)
    c.model.update(width=256, depth=4, heads=4, mlp=1024)
    if family == "bert":
        c.model.update(
            head="mlm", norm="pre", position="rotary", dropout=0.0, attention_dropout=0.0
        )
    c.objective.update(settings)
    train, valid, test = (f"data/wikitext2/{split}.txt" for split in ("train", "valid", "test"))
    c.data.update(source="files", train=train, valid=valid, test=test, max_length=128)
    c.tokenizer.vocab = 8000
    c.batch.tokens = 16 * 128
    c.optim.update(name="adamw", lr=1e-3, schedule="linear", warmup=400, clip=1.0)
    c.optim.update(b1=0.9, b2=0.98, eps=1e-6, weight_decay=0.01)
    if family == "t5":
        c.optim.update(name="adafactor", lr=2e-2, weight_decay=0.0, eps=1e-30)
    c.train.steps = 4000
    c.eval.every = c.checkpoint.every = 500
    return tiny(c) if small else c
