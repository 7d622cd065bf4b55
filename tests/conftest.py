"""Eight devices to shard over, strictness that finds bugs for nothing, and a toy corpus."""

import os
import random
import signal
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Programs run a few times here: compile them quickly, not well; and once, for many tests have the
# same. Whoever is started by this process, workers and what tests start, has these settings too.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _compiled = tempfile.TemporaryDirectory()
    os.environ |= {
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": _compiled.name,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    }

import jax
import pytest

from tfx import config as configs

# Whoever runs the tests may ignore these, as nohup does; what is tested here heeds them.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
if jax.__version_info__ < (0, 11):  # later versions do not know the flag
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "") + " --xla_cpu_use_fusion_emitters=false"
    )


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    """Text files {train,valid}.{a,b}: b is a with its words in reverse order."""
    folder, rng = tmp_path_factory.mktemp("toy"), random.Random(0)
    for split, count in (("train", 120), ("valid", 24)):
        words = [
            rng.choices(["red", "green", "blue", "one", "two", "three"], k=rng.randint(1, 7))
            for _ in range(count)
        ]
        for side, order in (("a", 1), ("b", -1)):
            text = "".join(" ".join(line[::order]) + "\n" for line in words)
            (folder / f"{split}.{side}").write_text(text)
    return folder


@pytest.fixture(scope="session")
def toy_config(toy):
    """A function of overrides, {"optim.lr": 0.1}, that makes a config over the toy corpus."""

    def make(overrides=()):
        config = configs.tiny(configs.defaults())
        split = lambda name: f"{toy}/{name}.a,{toy}/{name}.b"
        config.data.update(
            source="files", train=split("train"), valid=split("valid"), test=split("valid")
        )
        config.tokenizer.vocab = 40
        config.optim.update(lr=5e-3, schedule="rsqrt", warmup=4)
        config.train.update(steps=8)
        config.eval.update(every=0)
        config.checkpoint.update(every=4)
        config.decode.extra = 4
        for key, value in dict(overrides).items():
            section, _, name = key.rpartition(".")
            (config[section] if section else config)[name] = value
        return configs.freeze(config)

    return make


@pytest.fixture(scope="session")
def exercise():
    """A function of family, objective, tokenizer and values, section__key=1, that makes a config
    over the embedded exercises, with a model of one small layer."""

    def make(family, objective, kind, size="base", **values):
        c = configs.defaults(family, size, objective)
        c.model.update(width=16, depth=1, heads=2, mlp=16, max_length=128)
        c.data.update(source="synthetic", train="valid", valid="valid", test="valid", max_length=64)
        c.tokenizer.update(kind=kind, vocab=220)
        c.batch.update(tokens=1024, shapes=1)
        c.eval.every = 0
        c.optim.update(schedule="constant", lr=1e-2, warmup=1)
        c.train.update(steps=4, log_every=4)
        for key, value in values.items():
            section, name = key.split("__")
            c[section][name] = value
        return configs.freeze(c)

    return make
