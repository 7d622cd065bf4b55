"""What is learned. An objective is a file with two functions:

make_example(...) -> dict of arrays             numpy: what is fed, what is predicted
loss(apply, params, batch, rngs, train, **settings) -> (sum, weight, metrics)

Where one thing becomes several rows there is `make_examples` too: of span_qa, a question with a
long context; of distill, the rows of a batch, which share a budget of masked tokens.
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
