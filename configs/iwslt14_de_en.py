"""IWSLT14 German-English: fairseq's recipe `transformer_iwslt_de_en`.

    python scripts/prepare_data.py iwslt14_de_en --out data/iwslt14_de_en
    tfx train --config=iwslt14_de_en --workdir=runs/iwslt14_de_en
    tfx eval --workdir=runs/iwslt14_de_en

Time: an hour or two on one recent GPU (an estimate); a CPU is too slow.
Score: BLEU 34.6 on the test set, lower-cased and tokenised, best checkpoint, 41 epochs;
about 35 with checkpoints averaged (reported runs of the recipe: fairseq prints none).

Differs from fairseq: SentencePiece's BPE of 10,000 pieces, for both sides one vocabulary.
"""

from tfx.config import defaults, tiny, variant


def get_config(arg: str = ""):
    _, small = variant(arg)
    files = "data/iwslt14_de_en/{0}.de,data/iwslt14_de_en/{0}.en"
    train, valid, test = (files.format(split) for split in ("train", "valid", "test"))
    c = defaults("transformer", "base")
    c.model.update(width=512, depth=6, heads=4, mlp=1024, dropout=0.3, tie="decoder")
    c.data.update(source="files", train=train, valid=valid, test=test, max_length=175)
    c.tokenizer.update(vocab=10_000, lowercase=True)
    c.batch.tokens = 4096
    c.optim.update(name="adamw", lr=5e-4, schedule="rsqrt", warmup=4000, eps=1e-8)
    c.optim.weight_decay = 1e-4
    c.train.steps = 45_000
    c.eval.update(every=1000, bleu_every=1000, sentences=1000, monitor="bleu")
    c.checkpoint.every = 1000
    c.decode.update(beam=5, penalty="length", alpha=1.0)
    return tiny(c) if small else c
