"""Summaries, by T5 or an encoder-decoder: SciTLDR, or DialogSum.

    python scripts/prepare_data.py scitldr --out data/scitldr
    tfx train --config=summarise:runs/t5 --workdir=runs/t5-scitldr
    tfx eval --workdir=runs/t5-scitldr
    tfx train --config=summarise:models/t5-small,dialogsum --workdir=runs/t5-dialogsum

Variants: `:scitldr`, the default, abstracts of papers in one sentence (Cachola et al., 2020);
`:dialogsum`, talks in a few (Chen et al., 2021). Before or after it the place to start from, a
workdir or a folder of Hugging Face; or FAMILY-SIZE to start from nothing, t5-small by default.

Time: minutes on a GPU (an estimate); on 2 CPU cores, with a model as small as that of wikitext2:t5,
22 minutes for 1,500 batches of 2,048 tokens (measured; docs/tasks.md has the command).
Score: ROUGE-1 / 2 / L of T5 small 41.12 / 19.56 / 38.35, of base 42.05 / 20.34 / 39.40, on
CNN/Daily Mail (Raffel et al., 2020, table 14); its authors have scored neither of these sets.

Differs from the paper: a batch has 8,192 tokens, not 65,536, and there are 30 and 10 epochs of the
set alone, for it is small, not 262,144 steps. No three tokens come twice in a summary.
"""

from tfx.config import tiny
from tfx.start import placed, start_from

T5 = dict(name="adafactor", lr=1e-3, schedule="constant", warmup=0, eps=1e-30)
OTHER = dict(name="adamw", lr=3e-4, schedule="rsqrt", warmup=400, b2=0.98, eps=1e-8)
STEPS = {"scitldr": 3000, "dialogsum": 7000}


def get_config(arg: str = ""):
    place, name, small = placed(arg, "t5-small", *STEPS)
    c = start_from(place, "text_to_text")
    c.model.dropout = 0.1
    if c.model.name == "t5":
        c.model.update(attention_dropout=0.1, mlp_dropout=0.1)  # version 1.1 was trained without
    c.objective.prefix = "summarize: "
    files = f"data/{name}/{{}}.pairs.jsonl"
    train, dev, test = (files.format(split) for split in ("train", "dev", "test"))
    c.data.update(source="files", train=train, valid=dev, test=test, truncate=True)
    c.data.update(fields="source,target,references", max_length=min(512, c.model.max_length))
    c.batch.tokens = 8192
    c.hardware = "TPU|A100|H100|H200|B200: train.dtype=bfloat16"
    c.optim.update(T5 if c.model.name == "t5" else OTHER)
    c.train.steps = STEPS[name]
    c.eval.update(every=250, metric="rouge", patience=8)
    c.checkpoint.every = 250
    c.decode.update(beam=4, alpha=0.6, no_repeat=3, extra=0)
    return tiny(c) if small else c
