"""Your own parallel text: two files, the same number of lines, a sentence a line.

    tfx train --config=text_pair:my.en,my.de --workdir=runs/mine
    tfx translate --workdir=runs/mine

After the two training files may come two for validation, then two for testing; .gz works:

    tfx train --config=text_pair:train.en,train.de,valid.en,valid.de --workdir=runs/mine

A corpus of less than some 10,000 pairs wants a smaller vocabulary and model:
--config.tokenizer.vocab=2000 --config.model.width=128.

Time: an hour or two on 2 CPU cores (an estimate); a million pairs and more want an
accelerator and more --config.train.steps. Score: none to expect, it depends on the text.
"""

from tfx.config import defaults, tiny


def get_config(arg: str = ""):
    words = [word for word in arg.split(",") if word]
    files = [word for word in words if word != "tiny"] or ["source.txt", "target.txt"]
    if len(files) not in (2, 4, 6):
        raise ValueError(f"text_pair:{arg}: want 2, 4 or 6 files: train, valid, test")
    pairs = [",".join(files[i : i + 2]) for i in range(0, len(files), 2)] + ["", ""]
    c = defaults("transformer", "base")
    c.model.update(width=256, depth=3, heads=4, mlp=1024, norm="pre", dropout=0.1)
    c.data.update(source="files", train=pairs[0], valid=pairs[1], test=pairs[2])
    c.batch.tokens = 4096
    c.optim.update(lr=2e-3, schedule="rsqrt", warmup=1000)
    c.train.steps = 10_000
    c.eval.update(every=500, bleu_every=2000, sentences=200)
    if not c.data.valid:
        c.eval.update(every=0, bleu_every=0)
    c.checkpoint.every = 500
    return tiny(c) if "tiny" in words else c
