"""SST-2, the sentiment of film reviews, by a model that is fine-tuned.

    python scripts/prepare_data.py sst2 --out data/sst2
    tfx train --config=sst2:runs/bert --workdir=runs/bert-sst2
    tfx train --config=sst2:models/roberta-base --workdir=runs/roberta-sst2
    tfx eval --workdir=runs/bert-sst2 --split=valid
    tfx train --config=sst2:runs/bert-sst2,distill --workdir=runs/bert-sst2-half

Variants: `:PLACE`, a workdir or a folder of Hugging Face to start from; or FAMILY-SIZE to start
from nothing, `:bert-base` by default. Encoders, GPT and XLNet get a head; T5 and what translates
write the word. With `,distill` the place is a classifier that teaches another, half as deep, beside
the labels.

Time: minutes on a GPU (an estimate); on 2 CPU cores an hour for six layers of 384 (an estimate).
Score: accuracy on GLUE's test set 93.5 for BERT base, 94.9 for large (Devlin et al., 2019, table
1), 91.3 for GPT, 91.8 for T5 small, 95.2 for T5 base; on the dev set RoBERTa base 94.8, large 96.4,
DistilBERT 91.3, XLNet large 97.0. GLUE keeps the labels of its test set, so `test` is the dev set.

Differs from the papers: a batch has 640 tokens, some 32 texts of the usual length, not always 32.
T5 is trained on this task alone, as long as the others. GPT has no tokens of its own around texts.
"""

from tfx.config import tiny
from tfx.start import placed, start_from

ADAM = dict(name="adamw", schedule="linear", b1=0.9, b2=0.999, eps=1e-6, weight_decay=0.01)
BERT = ADAM | dict(lr=3e-5, warmup=630, clip=1.0)
EPOCH = 2100  # steps
RECIPES = {  # epochs, and how the parameters move
    "bert": (3, BERT),
    "distilbert": (3, BERT),
    "roberta": (10, ADAM | dict(lr=1e-5, warmup=1260, b2=0.98, weight_decay=0.1)),
    "gpt": (3, ADAM | dict(lr=6.25e-5, warmup=13, eps=1e-8, clip=1.0)),
    "gpt2": (3, ADAM | dict(lr=6.25e-5, warmup=13, eps=1e-8, clip=1.0)),
    "xlnet": (4, ADAM | dict(lr=2e-5, warmup=840, clip=1.0)),
    "t5": (3, dict(name="adafactor", lr=1e-3, schedule="constant", warmup=0, eps=1e-30)),
}
SCRATCH = (3, ADAM | dict(lr=3e-4, warmup=630, clip=1.0))


def get_config(arg: str = ""):
    place, lesson, small = placed(arg, "bert-base", "labels", "distill")
    distills = lesson == "distill" and not small  # a tiny one has no teacher
    c = start_from(place, *(["distill_task"] if distills else ["text_to_text", "classify"]))
    if distills:
        c.objective.teacher = c.init_from
        c.model.depth = (c.model.depth + 1) // 2
    epochs, how = RECIPES.get(c.model.name, SCRATCH)
    c.optim.update(how)
    c.objective.labels = "negative,positive"
    if c.objective.name == "text_to_text":
        c.objective.prefix = "sst2 sentence: "
        c.decode.update(method="greedy", extra=5)
    else:
        c.model.classes = 2
        c.eval.monitor = "accuracy"
    if c.model.name in ("gpt", "gpt2") and not distills:
        c.objective.language = 0.5
    train, dev = "data/sst2/train.tsv", "data/sst2/dev.tsv"
    c.data.update(source="files", train=train, valid=dev, test=dev, fields="sentence,label")
    c.data.max_length = min(128, c.model.max_length)
    c.batch.tokens = 640
    c.hardware = "TPU|A100|H100|H200|B200: train.dtype=bfloat16"
    c.train.steps = epochs * EPOCH
    c.eval.every = c.checkpoint.every = EPOCH // 3
    return tiny(c) if small else c
