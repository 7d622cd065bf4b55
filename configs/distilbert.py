"""DistilBERT, distilled from BERT: Sanh et al. (2019), arXiv:1910.01108.

    tfx train --config=distilbert:runs/bert --workdir=runs/distilbert
    tfx eval --workdir=runs/distilbert
    tfx train --config=sst2:runs/distilbert --workdir=runs/distilbert-sst2

Variants: `:PLACE`, a workdir or a folder of Hugging Face whose model predicts masked tokens: it
teaches, and its student has half its layers and starts from them. `:base` (the default) has the
paper's shape, for a teacher that flags name: --config.objective.teacher and --config.init_from.
`:tiny` has no teacher, and so is masked language modelling alone.

Data: BERT's (configs/bert.py), though here any lines will do.

Time: 90 hours on 8 V100 of 16 GB (the paper's section 3).
Score: GLUE dev average 77.0, of its teacher 79.5; SST-2 91.3 (the authors' repository).

Differs from the paper: rows are cut out of the text, 512 tokens each, not sentences of any length;
Adam goes on for a number of steps, 3 times through 4 billion tokens.
"""

from tfx.config import defaults, tiny
from tfx.start import placed, start_from


def get_config(arg: str = ""):
    teacher, _, small = placed(arg, "", "base")
    objective = "masked_lm" if small else "distill"
    if teacher:
        c = start_from(teacher, objective)
        c.model.update(depth=(c.model.depth + 1) // 2, head="mlm")
        if c.model.name == "bert":
            c.model.update(name="distilbert", types=0, pooler="relu", head_dropout=0.2)
    else:
        c = defaults("distilbert", "base", objective)
        c.tokenizer.update(vocab=30_522, lowercase=True)
    if not small:
        c.objective.teacher = teacher
    train, valid = "data/books_wiki/train.txt", "data/books_wiki/valid.txt"
    c.data.update(source="files", train=train, valid=valid, test=valid)
    c.data.max_length = min(512, c.model.max_length)
    c.batch.tokens = 4000 * 512
    c.hardware = "TPU|A100|H100|H200|B200: train.dtype=bfloat16"
    c.optim.update(name="adamw", lr=5e-4, schedule="linear", warmup=300, clip=5.0)
    c.optim.update(b1=0.9, b2=0.98, eps=1e-6)
    c.train.update(steps=6000, accum=50)
    c.eval.every = c.checkpoint.every = 500
    return tiny(c) if small else c
