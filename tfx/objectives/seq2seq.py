"""Translation: predict each token of the target, given the source and the tokens before.

source      s1 ... sn EOS
target_in   BOS t1 ... tm
target_out  t1 ... tm EOS
"""

import numpy as np

from tfx.nn.losses import cross_entropy

EOS, BOS = 1, 3


def make_example(source: np.ndarray, target: np.ndarray) -> dict[str, np.ndarray]:
    """What is fed and what is predicted, from the ids of both sides."""
    return {
        "source": np.append(source, EOS),
        "target_in": np.concatenate([[BOS], target]),
        "target_out": np.append(target, EOS),
    }


def loss(apply, params, batch, rngs, train, *, label_smoothing, smoothing, z_loss):
    """Label-smoothed cross-entropy.

    Returns:
      Its sum over target tokens, their number, and sums of metrics: the plain negative
      log-likelihood.
    """
    factors = apply(params, batch, rngs=rngs, train=train)["logits"].factors()
    targets_BT, weights_BT = batch["target_out"], batch["weights"]
    settings = (label_smoothing if train else 0.0, smoothing, z_loss if train else 0.0)
    total, nll = cross_entropy(*factors, targets_BT, weights_BT, *settings)
    return total, weights_BT.sum(), {"nll": nll}
