import dataclasses
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfx import config as configs
from tfx.config import Config, defaults, freeze, from_json, to_json

KEYS = configs.flatten(defaults())


def with_values(**values):
    """The default dict with `section__key=value` changed, whatever the type."""
    tree = defaults().to_dict()
    for key, value in values.items():
        *sections, leaf = key.split("__")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[leaf] = value
    return tree


def message(tree) -> str:
    with pytest.raises(ValueError) as raised:
        freeze(tree)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_defaults_are_the_papers_base_model():
    config = freeze(defaults())
    model = config.model
    assert (model.width, model.depth, model.heads, model.mlp) == (512, 6, 8, 2048)
    assert freeze(defaults("transformer", "big")).model.width == 1024
    assert (config.optim.schedule, config.optim.warmup) == ("noam", 4000)


def test_the_keys_that_people_rely_on_are_there():
    model = "width depth heads mlp dropout norm attention position"
    other = (
        "seed init_from train.steps checkpoint.every optim.lr optim.warmup data.source data.train "
        "data.valid data.test batch.tokens decode.beam decode.alpha mesh.data"
    )
    assert {f"model.{key}" for key in model.split()} | {*other.split()} <= KEYS.keys()


def test_what_the_tokenizer_decides_is_no_key():
    assert not {"model.source_vocab", "model.dtype"} & KEYS.keys()


def test_a_locked_dict_refuses_a_new_key_and_another_type():
    config = defaults()
    with pytest.raises(AttributeError):
        config.optim.lrr = 1.0
    with pytest.raises(TypeError):
        config.train.steps = 1.5


@pytest.mark.parametrize(
    "values, expected",
    [
        (dict(optim__lrr=1.0), "optim.lrr: no such key; did you mean optim.lr?"),
        (dict(stpes=1), "stpes: no such key; did you mean train.steps?"),
        (dict(lr=1.0), "lr: no such key; did you mean optim.lr?"),
        (dict(optm__warmup=1), "optm.warmup: no such key; did you mean optim.warmup?"),
        (dict(mesh__zzz=1), "mesh.zzz: no such key; mesh has data, fsdp, tensor, sequence"),
        (dict(optim=3), "optim: a section, not a value; it has name, lr"),
        (dict(optim__lr={"peak": 1.0}), "optim.lr.peak: no such key"),
        (dict(model__norm="pst"), 'model.norm = "pst": choose from post, pre'),
        (dict(model__name="mamba"), 'model.name = "mamba": choose from transformer'),
        (dict(model__name=["transformer"]), "model.name = ['transformer']: choose from"),
        (dict(optim__lr=math.nan), "optim.lr = nan: want x > 0"),
        (dict(optim__lr=math.inf), "optim.lr = inf: want a finite number"),
        (dict(optim__lr="fast"), 'optim.lr = "fast": want a number'),
        (dict(optim__lr=None), "optim.lr = None: want a number"),
        (dict(optim__lr=True), "optim.lr = True: want a number"),
        (dict(train__steps=-5), "train.steps = -5: want x >= 1"),
        (dict(train__steps=2.0), "train.steps = 2.0: want a whole number"),
        (dict(train__steps=True), "train.steps = True: want a whole number"),
        (dict(tokenizer__joint=1), "tokenizer.joint = 1: want true or false"),
        (dict(data__train=7), "data.train = 7: want text"),
        (dict(model__dropout=1.0), "model.dropout = 1.0: want 0 <= x < 1"),
        (dict(decode__top_p=0.0), "decode.top_p = 0.0: want 0 < x <= 1"),
        (dict(mesh__data=0), "mesh.data = 0: want x >= -1 and x != 0"),
    ],
)
def test_a_wrong_value_is_named_with_its_key_and_the_nearest_right_one(values, expected):
    assert message(with_values(**values)).startswith(expected)


@pytest.mark.parametrize(
    "values, expected",
    [
        (dict(model__heads=7), "model.heads = 7 does not divide model.width = 512"),
        (
            dict(data__source="tfds"),
            'data.source = "tfds": choose from synthetic, files, tfds:NAME',
        ),
        (dict(data__train=""), 'data.train = "": '),
        (dict(data__valid=""), 'data.valid = "": '),
        (dict(objective__name="mlm"), 'objective.name = "mlm": choose from seq2seq'),
        (
            dict(model__name="bert"),
            'model.name = "bert": objective.name = "seq2seq" needs an encoder and a decoder; ',
        ),
        (dict(eval__monitor="bleu"), "eval.monitor = bleu: needs eval.bleu_every above 0"),
        (dict(eval__monitor="accuracy"), "eval.monitor = accuracy: objective.name = "),
        (dict(eval__every=0, eval__patience=3), "eval.patience = 3: needs eval.every"),
        (dict(tokenizer__joint=False), "model.tie = all: set tokenizer.joint = true"),
        (dict(tokenizer__kind="bytes", tokenizer__sampling=0.1), "tokenizer.sampling = 0.1: "),
        (dict(optim__schedule="cosine", train__steps=100), "optim.warmup = 4000: want less than"),
        (dict(data__max_length=5000), "data.max_length = 5000: model.max_length allows only 1024"),
    ],
)
def test_values_that_do_not_fit_each_other_are_refused(values, expected):
    assert message(with_values(**values)).startswith(expected)


def test_values_that_do_fit():
    freeze(with_values(data__valid="", eval__every=0))
    freeze(with_values(tokenizer__joint=False, model__tie="decoder"))
    freeze(with_values(data__source="tfds:wmt14_translate/de-en"))
    assert freeze(with_values(optim__lr=2)).optim.lr == 2.0


def test_a_whole_number_for_a_float_becomes_one():
    assert isinstance(freeze(with_values(optim__lr=1)).optim.lr, float)


@given(
    lr=st.floats(0, exclude_min=True, allow_infinity=False),
    alpha=st.floats(0, 1e300),
    seed=st.integers(0, 2**63),
    path=st.text(st.characters(exclude_categories=("Cs",))),
    norm=st.sampled_from(["post", "pre"]),
    flag=st.booleans(),
)
@settings(max_examples=50, deadline=None)
def test_json_gives_back_the_same_config(lr, alpha, seed, path, norm, flag):
    tree = with_values(
        optim__lr=lr, decode__alpha=alpha, seed=seed, init_from=path, model__norm=norm
    )
    tree["tokenizer"]["lowercase"] = flag
    config = freeze(tree)
    again = from_json(to_json(config))
    assert again == config
    assert configs.fingerprint(again) == configs.fingerprint(config)
    assert freeze(configs.thaw(config)) == config


def test_json_without_a_key_takes_its_default():
    tree = json.loads(to_json(freeze(defaults())))
    del tree["decode"]["top_p"], tree["mesh"]
    assert from_json(json.dumps(tree)) == freeze(defaults())


@pytest.mark.parametrize(
    "text, expected",
    [
        ("{\n 1", "line 2: not JSON"),
        ("[1]", "not a config"),
        ("3", "not a config"),
        ('{"optim": {"lr": NaN}}', "optim.lr = nan"),
    ],
)
def test_damaged_json_is_refused(text, expected):
    with pytest.raises(ValueError, match=expected):
        from_json(text)


def test_the_hash_is_of_what_decides_the_parameters():
    same = dict(train__steps=7, train__log_every=1, eval__every=3, decode__beam=9, mesh__data=1)
    base = configs.fingerprint(freeze(defaults()))
    assert len(base) == 12 and int(base, 16) >= 0
    assert configs.fingerprint(freeze(with_values(**same))) == base
    for key, value in dict(seed=1, model__depth=5, optim__lr=2.0, data__train="other").items():
        assert configs.fingerprint(freeze(with_values(**{key: value}))) != base


def test_the_number_of_steps_counts_where_the_schedule_looks_at_it():
    runs = [
        freeze(with_values(optim__schedule=schedule, train__steps=steps))
        for schedule in ("cosine", "rsqrt")
        for steps in (8000, 9000)
    ]
    cosine, rsqrt = (
        {configs.fingerprint(c) for c in runs[:2]},
        {configs.fingerprint(c) for c in runs[2:]},
    )
    assert (len(cosine), len(rsqrt)) == (2, 1)


def test_diff_names_what_differs_and_what_is_missing():
    left, right = {"a": 1, "b": 2.0, "c": "x"}, {"a": 1, "b": 3.0, "d": True}
    assert configs.diff(left, right) == [("b", 2.0, 3.0), ("c", "x", None), ("d", None, True)]
    assert configs.diff(left, left) == []


def test_overrides_change_the_dict_and_are_reported():
    config = defaults()
    words = "--config.optim.lr=1e-3 --config.train.steps=5 --noconfig.tokenizer.joint"
    changed = configs.override(config, [*words.split(), "--config.tokenizer.lowercase"])
    assert changed == {
        "optim.lr": 1e-3,
        "train.steps": 5,
        "tokenizer.joint": False,
        "tokenizer.lowercase": True,
    }
    assert {key: configs.flatten(config)[key] for key in changed} == changed


def test_the_last_of_two_overrides_wins():
    config = defaults()
    assert configs.override(config, ["--config.seed=1", "--config.seed=2"]) == {"seed": 2}
    assert config.seed == 2


@pytest.mark.parametrize(
    "word, expected",
    [
        ("--config.optim.lrr=1", "optim.lrr: no such key; did you mean optim.lr?"),
        ("--config.optim.lr=abc", 'optim.lr = "abc": want a number'),
        ("--config.optim.lr=", 'optim.lr = "": want a number'),
        ("--config.train.steps=1e3", 'train.steps = "1e3": want a whole number'),
        ("--config.tokenizer.joint=maybe", 'tokenizer.joint = "maybe": want true or false'),
        ("--config.optim.lr", "--config.optim.lr: a value is missing"),
        ("--noconfig.optim.lr", "--noconfig.optim.lr: a value is missing"),
        ('--config.model={"width": 3}', "model: a section, not a value"),
    ],
)
def test_a_wrong_override_is_one_line(word, expected):
    with pytest.raises(ValueError) as raised:
        configs.override(defaults(), [word])
    assert str(raised.value).startswith(expected)


def test_a_value_that_the_file_set_to_none_cannot_be_overridden():
    config = defaults()
    config.optim.lr = None
    with pytest.raises(ValueError, match="in the config file first"):
        configs.override(config, ["--config.optim.lr=1"])


def write(folder, body: str):
    path = folder / "mine.py"
    path.write_text(f"from tfx.config import defaults\n{body}")
    return str(path)


def test_a_config_file_gets_its_argument(tmp_path):
    body = "def get_config(arg=''):\n    c = defaults()\n    c.data.train = arg\n    return c\n"
    path = write(tmp_path, body)
    assert configs.load(f"{path}:a.en,a.de").data.train == "a.en,a.de"
    assert configs.load(path).data.train == ""


def test_a_config_file_without_parameter_works_without_argument(tmp_path):
    path = write(tmp_path, "def get_config():\n    return defaults()\n")
    assert freeze(configs.load(path)) == freeze(defaults())


@pytest.mark.parametrize(
    "body, expected",
    [
        ("def get_config(arg:\n", ":2: "),
        ("def get_config(arg=''):\n    return 1 / 0\n", ":3: ZeroDivisionError: division by zero"),
        ("import nothing_like_this\n", ":2: ModuleNotFoundError: No module named"),
        (
            "def get_config(arg=''):\n    c = defaults()\n    c.optim.lrr = 1\n    return c\n",
            ":4: lrr: no such key; did you mean optim.lr?",
        ),
        (
            "def get_config(arg=''):\n    c = defaults()\n    return c.optm\n",
            ":4: optm: no such key; did you mean optim?",
        ),
        (
            "def get_config(arg=''):\n    c = defaults()\n    c.train.steps = 0.5\n    return c\n",
            ":4: TypeError: Could not override field 'steps'",
        ),
        (
            "def get_config(arg=''):\n    return defaults('transformer', 'huge')\n",
            ':3: size "huge" of transformer: choose from base, big',
        ),
        ("def get_config(arg=''):\n    return {}\n", ": get_config returns dict, not a ConfigDict"),
        ("x = 1\n", ": defines no get_config(arg)"),
    ],
)
def test_a_config_file_that_raises_is_one_line_with_its_place(tmp_path, body, expected):
    path = write(tmp_path, body)
    with pytest.raises(ValueError) as raised:
        configs.load(path)
    assert str(raised.value).startswith(path + expected)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["quikstart", "quikstart.py", "configs/quikstart.py"])
def test_a_config_that_is_not_there_gets_a_suggestion(name):
    with pytest.raises(FileNotFoundError, match="no such config file; did you mean quickstart"):
        configs.load(name)


def test_a_built_in_config_is_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("quickstart", "quickstart.py", "configs/quickstart.py:tiny"):
        configs.load(name)
    with pytest.raises(FileNotFoundError):
        configs.load("elsewhere/quickstart.py")


def test_a_file_of_ones_own_goes_before_a_built_in_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "def get_config(arg=''):\n    c = defaults()\n    c.seed = 9\n    return c\n")
    (tmp_path / "mine.py").rename("quickstart.py")
    assert configs.load("quickstart.py").seed == 9
    assert configs.load("quickstart").seed == 0


def test_variant_reads_the_words_of_an_argument():
    assert configs.variant("", "base", "big") == ("base", False)
    assert configs.variant("big,tiny", "base", "big") == ("big", True)
    assert configs.variant("tiny") == ("", True)
    for arg in ("bg", "base,big"):
        with pytest.raises(ValueError, match="choose from base, big, tiny"):
            configs.variant(arg, "base", "big")


def test_tiny_shrinks_and_never_grows():
    small = freeze(configs.tiny(defaults("transformer", "big")))
    assert (small.model.width, small.model.depth, small.train.steps) == (16, 1, 2)
    assert small.data.source == "synthetic"
    config = defaults()
    config.update(train={"steps": 1}, tokenizer={"vocab": 100})
    small = freeze(configs.tiny(config))
    assert (small.train.steps, small.tokenizer.vocab) == (1, 100)


def test_a_config_is_frozen():
    config = freeze(defaults())
    assert isinstance(config, Config)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.optim.lr = 3.0


# ------------------------------------------------------------- meshes and devices


def test_a_preset_is_the_four_sizes_it_stands_for():
    config = defaults()
    changed = configs.override(config, ["--config.mesh=fsdp_tp", "--config.mesh.tensor=4"])
    assert changed == {"mesh.data": 1, "mesh.fsdp": -1, "mesh.tensor": 4, "mesh.sequence": 1}
    assert dict(config.mesh) == dict(data=1, fsdp=-1, tensor=4, sequence=1)
    with pytest.raises(ValueError, match=r'mesh = "fsdpp": no such preset.*fsdp'):
        configs.override(defaults(), ["--config.mesh=fsdpp"])


def test_the_first_rule_that_matches_the_device_is_overridden():
    config = defaults()
    config.hardware = "TPU v5 lite: mesh=fsdp model.remat=full; TPU|H100: train.dtype=bfloat16;"
    of = lambda kind: configs.of_hardware(config, kind)
    assert of("TPU v5 lite") == ["--config.mesh=fsdp", "--config.model.remat=full"]
    assert of("TPU v4") == of("NVIDIA H100 80GB") == ["--config.train.dtype=bfloat16"]
    assert of("cpu") == of("") == []
    freeze(config)
    for wrong in ("TPU train.dtype=bfloat16", "TPU: train.dtype", ": a=b"):
        config.hardware = wrong
        with pytest.raises(ValueError, match=r"hardware: .*want DEVICE REGEX: KEY=VALUE"):
            freeze(config)


def test_on_what_a_run_runs_does_not_decide_which_run_it_is():
    one, other = defaults(), defaults()
    other.mesh.fsdp, other.model.remat, other.hardware = 2, "full", "TPU: model.scan=true"
    other.model.scan, other.model.kernel = True, "xla"
    assert configs.fingerprint(freeze(one)) == configs.fingerprint(freeze(other))
    other.train.dtype = "bfloat16"
    assert configs.fingerprint(freeze(one)) != configs.fingerprint(freeze(other))
