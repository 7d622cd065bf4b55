"""What is learned. An objective is a file with

    Config                                   its settings
    ROWS, HEADS                              the rows it reads (data/rows.py), the heads it trains
    examples(config, given) -> Examples      numpy: what is fed, what is predicted
    loss(apply, params, batch, rngs, train, **settings) -> (sum, weight, sums)        jax

The mean of each of the sums is over the weight, but for those that `OVER` names. `examples` is
made of `make_example`, which knows one row and no data set; span_qa has `make_examples`, for a
question with a long context becomes several rows.
"""

from tfx.objectives import (
    causal_lm,
    classify,
    distill,
    distill_task,
    masked_lm,
    multiple_choice,
    permutation_lm,
    regress,
    seq2seq,
    span_corruption,
    span_qa,
    tag,
    text_to_text,
)

OBJECTIVES = {
    "seq2seq": seq2seq,
    "text_to_text": text_to_text,
    "span_corruption": span_corruption,
    "causal_lm": causal_lm,
    "masked_lm": masked_lm,
    "permutation_lm": permutation_lm,
    "distill": distill,
    "distill_task": distill_task,
    "classify": classify,
    "regress": regress,
    "tag": tag,
    "multiple_choice": multiple_choice,
    "span_qa": span_qa,
}


def name_of(config) -> str:
    """What an objective's Config is called."""
    return next(n for n, objective in OBJECTIVES.items() if type(config) is objective.Config)


def predicts_tokens(config) -> bool:
    """Whether the `nll` of an objective is that of tokens of a vocabulary."""
    return OBJECTIVES[name_of(config)].ROWS in ("pair", "text")


def has_accuracy(config) -> bool:
    """Whether what an objective predicts is right or wrong."""
    return not predicts_tokens(config) and type(config) is not regress.Config


def means(config, total: dict[str, float]) -> dict[str, float]:
    """The mean of every sum of an objective, over what it says."""
    over = getattr(OBJECTIVES[name_of(config)], "OVER", {})
    counts = {"weight", *over.values()}
    return {
        name: value / max(total[over.get(name, "weight")], 1.0)
        for name, value in total.items()
        if name not in counts
    }
