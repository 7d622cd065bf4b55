"""SQuAD, questions answered by a piece of a text: Rajpurkar et al. (2016, 2018).

    python scripts/prepare_data.py squad --out data/squad
    tfx train --config=squad:runs/bert --workdir=runs/bert-squad
    tfx eval --workdir=runs/bert-squad --split=valid
    tfx train --config=squad:models/bert-base,2.0 --workdir=runs/bert-squad2

Variants: `:1.1`, the default; `:2.0`, where many questions have no answer (data/squad2);
`:policyqa`, on privacy policies, a smaller set (data/policyqa). Before or after it the place to
start from, a workdir or a folder of Hugging Face; or FAMILY-SIZE to start from nothing, bert-base
by default. BERT, RoBERTa, DistilBERT and XLNet can learn it.

Time: half an hour for base on a Cloud TPU (Google's readme of BERT); a CPU is too slow but for
small models.
Score: EM / F1 on the dev set, which `test` is too. 1.1: BERT base 80.8 / 88.5, large 84.1 / 90.9
(Devlin et al., 2019, table 2), RoBERTa large 88.9 / 94.6, XLNet large 89.7 / 95.1. 2.0: BERT large
78.7 / 81.9, RoBERTa large 86.5 / 89.4, XLNet large 87.9 / 90.6.

Differs from the papers: a batch has as many tokens as they have in rows of the usual length, and
steps are counted for it.
"""

from tfx.config import tiny
from tfx.start import placed, start_from

ADAM = dict(name="adamw", schedule="linear", b1=0.9, b2=0.999, eps=1e-6, weight_decay=0.01)
BERT = ADAM | dict(lr=5e-5, clip=1.0)
RECIPES = {
    "bert": BERT,
    "distilbert": BERT,
    "roberta": ADAM | dict(lr=1.5e-5, b2=0.98),
    "xlnet": ADAM | dict(lr=3e-5, layer_decay=0.75, clip=1.0),
}
DATA = {  # folder, training and dev set, tokens of a batch, steps
    "1.1": ("squad", "train-v1.1", "dev-v1.1", 6144, 8000),
    "2.0": ("squad2", "train-v2.0", "dev-v2.0", 9216, 5200),
    "policyqa": ("policyqa", "train", "dev", 6144, 1500),
}


def get_config(arg: str = ""):
    place, name, small = placed(arg, "bert-base", *DATA)
    folder, train, dev, tokens, steps = DATA[name]
    c = start_from(place, "span_qa")
    if c.model.name not in RECIPES:
        raise ValueError(f"{place}: a {c.model.name}; choose from {', '.join(RECIPES)}")
    train, dev = f"data/{folder}/{train}.json", f"data/{folder}/{dev}.json"
    c.data.update(source="files", train=train, valid=dev, test=dev)
    c.data.max_length = min(512 if c.model.name == "xlnet" else 384, c.model.max_length)
    c.objective.no_answer = name == "2.0"
    c.batch.tokens = tokens
    c.hardware = "TPU|A100|H100|H200|B200: train.dtype=bfloat16"
    c.optim.update(RECIPES[c.model.name])
    c.optim.warmup = int(steps * (0.06 if c.model.name == "roberta" else 0.1))
    c.train.steps = steps
    c.eval.every = c.checkpoint.every = steps // 8
    return tiny(c) if small else c
