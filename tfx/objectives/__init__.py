"""What is learned. An objective is a file with two functions:

make_example(...) -> dict of arrays             numpy: what is fed, what is predicted
loss(apply, params, batch, rngs, train, **settings) -> (sum, weight, metrics)
"""

from tfx.objectives import seq2seq

OBJECTIVES = {"seq2seq": seq2seq}
