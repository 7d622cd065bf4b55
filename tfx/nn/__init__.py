"""The pure maths: what every model is built of. Knows no config, no data, no training.

Numbers: parameters are float32; activations have the type that `Embed` gave them, and
every layer keeps it. Norms, softmax and losses compute in float32 whatever comes in.
"""
