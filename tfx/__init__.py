"""tfx: a functional research framework for Transformers in JAX and Flax.

Axis letters. They are the suffixes of array names, the letters of einsum strings and
the logical axes of sharding, all at once; this is the only place that lists them.

    B batch            T target / query length    S source / key length    D width
    H heads            K width of one head        F width of the mlp       V vocabulary
    N depth (layers)   W beams                    R rows = B * W           1 broadcast
    C candidates, or choices                      P predicted positions, or of a prefix
    L labels, or token types                      E the width again, as an output

`scores_BHTS` holds one number per sentence, head, query position and key position.

The journey of one sentence, and the file that takes each step:

    line of text   data/sources.py       files | TFDS | the embedded grammar
    -> ids         data/tokenizer.py     SentencePiece (trained on first use) | bytes
    -> example     objectives/seq2seq.py what is fed, what is predicted, with which weight
    -> batch       data/pipeline.py      batch = f(seed, step), few static shapes
    -> devices     sharding.py           one mesh, one table letter -> mesh axis
    -> step        train.py              pure (state, batch) -> (state, metrics)
       -> model    models/transformer.py -> nn/block.py -> nn/attention.py
    -> checkpoint  checkpoint.py         Orbax: parameters, optimiser, RNG, data position
    -> hypothesis  decode.py             greedy | beam | sample over a step function
    -> text        translate.py          lines in, lines out, in order
    -> score       evaluate.py           sacreBLEU with its signature
"""

__version__ = "0.1.0"


def load(workdir, **kwargs):
    """Open a workdir for translating and inspection; see `tfx.translate.load`."""
    from tfx import translate

    return translate.load(workdir, **kwargs)
