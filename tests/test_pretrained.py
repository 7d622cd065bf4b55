"""A folder of Hugging Face becomes a model, or a line that says why not."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import linen as nn

from tfx import models, pretrained
from tfx.models import weights

FAMILIES = Path(__file__).parent / "fixtures/hf"
FOLDERS = sorted(path.parent for path in FAMILIES.glob("*/*/config.json"))


def ids(about):
    """What is told beside a model."""
    return {key: x for key, x in about.items() if key.endswith("_token_id")}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_what_is_written_back_is_what_was_read(folder, tmp_path):
    """Bit for bit, biases of keys included, which no output shows; and the same config."""
    found = pretrained.read(folder)
    pretrained.write(tmp_path / "new", found.model, found.params, about=ids(found.about))
    again = pretrained.read(tmp_path / "new")
    assert (again.family, again.model.config) == (found.family, found.model.config)
    jax.tree.map(np.testing.assert_array_equal, again.params, found.params)
    clean = models.family(found.model.config).FORMAT.clean
    stored, written = (clean(weights.read(path)) for path in (folder, tmp_path / "new"))
    assert written.keys() <= stored.keys()
    for name, x in written.items():
        np.testing.assert_array_equal(x, stored[name], err_msg=name)
    name = again.about["architectures"]
    assert (
        name == found.about["architectures"]
        and not ids(found.about).items() - ids(again.about).items()
    )


SMALL = dict(width=8, depth=1, heads=2, mlp=32, vocab=11, max_length=12)


def small(family, **fields):
    """A model of ours that was never Hugging Face's, with random parameters."""
    model = models.build(models.MODELS[family].Config(**SMALL | fields))
    random = np.random.default_rng(0)
    draw = lambda x: random.normal(size=x.shape).astype(np.float32)
    return model, jax.tree.map(draw, nn.unbox(models.shapes(model)))


IDS = dict(pad_token_id=0, eos_token_id=1, decoder_start_token_id=3)


@pytest.mark.parametrize(
    "family, fields",
    [
        ("bert", dict(head="mlm", activation="gelu_tanh", head_activation="gelu_tanh")),
        ("bert", dict(head="tokens", classes=5, scan=True, remat="full", dropout=0.3)),
        ("bert", dict(tie=False)),
        ("roberta", dict(head="classify", position_offset=1)),
        ("roberta", dict(tie=False, position_offset=1)),
        ("distilbert", dict(tie=False)),
        ("distilbert", dict(head="choice", pooler="relu")),
        ("gpt", dict(tie=False)),
        ("gpt2", dict(head="classify", head_dropout=0.2, attention="dot")),
        ("xlnet", dict(head="beam", end_top=3)),
        ("t5", dict(key_width=3, value_width=3, activation="geglu", decoder_depth=2)),
        ("t5", dict(head="none", tie="inputs")),
        ("marian", dict(tie="none", source_vocab=7)),
        ("bart", dict(decoder_mlp=20)),
        ("bart", dict(tie="none", source_vocab=11)),
    ],
)
def test_models_of_our_own_are_written(family, fields, tmp_path):
    model, params = small(family, **fields)
    pretrained.write(tmp_path / "new", model, params, {"vocab.txt": b"a"}, IDS)
    found = pretrained.read(tmp_path / "new")
    format = models.family(model.config).FORMAT
    assert format.meaning(found.model.config) == format.meaning(model.config)
    jax.tree.map(np.testing.assert_array_equal, found.params, params)
    assert (tmp_path / "new/vocab.txt").read_bytes() == b"a"


@pytest.mark.parametrize(
    "family, fields, told",
    [
        (
            "bert",
            dict(position="rotary", embedding_norm=False),
            "Bert there has no model.position = 'rotary', model.emb",
        ),
        ("bert", dict(norm="pre"), "model.norm = 'pre', model.final_norm = 'on'"),
        ("bert", dict(types=0), "model.types = 0: "),
        ("bert", dict(activation="swiglu"), "model.activation = 'swiglu': .* has gelu, gelu_tanh"),
        ("bert", dict(head_activation="relu"), "model.head_activation = 'relu'"),
        ("roberta", dict(), "padding is 1, this one's is 0; set 1 and train on"),
        ("roberta", dict(head="nsp"), "model.head = 'nsp': Hugging Face's has none, mlm, "),
        ("distilbert", dict(head="none"), "model.pooler = 'relu': .*DistilBertModel has none"),
        ("distilbert", dict(types=2), "model.types = 2"),
        ("gpt", dict(mlp=20), "model.mlp = 20: .* an mlp of 4 widths"),
        ("gpt2", dict(norm="post"), "model.norm = 'post', model.final_norm = 'off'"),
        ("xlnet", dict(attention_bias=True), "model.attention_bias = True"),
        ("t5", dict(position="alibi"), "model.position = 'alibi'"),
        ("t5", dict(activation="glu"), "model.activation = 'glu': .* has gelu"),
        ("marian", dict(position="learned"), "model.position = 'learned'"),
        ("bart", dict(tie="decoder"), "model.tie = 'decoder': .*BART has one table, or three"),
        ("marian", dict(tie="inputs"), "model.tie = 'inputs': .* has one table, two, or three"),
        ("transformer", dict(), "Marian.* there has no model.epsilon = 1e-06"),
        ("transformer", dict(position="rotary", epsilon=1e-5), "model.position = 'rotary': Marian"),
    ],
)
def test_what_cannot_be_said_there_is_refused(family, fields, told, tmp_path):
    with pytest.raises(ValueError, match=told) as raised:
        pretrained.write(tmp_path / "new", *small(family, **fields), about=IDS)
    assert "\n" not in str(raised.value) and not (tmp_path / "new").exists()


def test_an_encoder_decoder_must_know_its_ids(tmp_path):
    with pytest.raises(ValueError, match="eos_token_id and decoder_start_token_id must be said"):
        pretrained.write(tmp_path / "new", *small("bart"), about={"pad_token_id": 0})


def test_sisters_of_a_family_keep_their_name(tmp_path):
    model, params = small("roberta", position_offset=2)
    about = {"model_type": "xlm-roberta", "pad_token_id": 1}
    pretrained.write(tmp_path / "new", model, params, about=about)
    told = pretrained.read_config(tmp_path / "new")
    assert (told["model_type"], told["architectures"]) == ("xlm-roberta", ["XLMRobertaForMaskedLM"])
    pretrained.write(tmp_path / "other", *small("bert"), about={"model_type": "gpt2"})
    assert pretrained.read_config(tmp_path / "other")["model_type"] == "bert"


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "mine").write_text("keep")
    with pytest.raises(ValueError, match="holds something; choose another folder"):
        pretrained.write(tmp_path, *small("bert"))
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_what_a_config_lacks_is_said(tmp_path):
    folder = changed(FAMILIES / "marian/MarianMTModel_swish", tmp_path, vocab_size=None,
                     share_encoder_decoder_embeddings=False)  # fmt: skip
    with pytest.raises(ValueError, match=r"config.json says no vocab_size, which a marian needs"):
        pretrained.read(folder)


def test_a_scalar_is_of_another_shape(tmp_path):
    folder = changed(FAMILIES / "bert/BertModel", tmp_path)
    tensors = weights.read(folder) | {"pooler.dense.bias": np.float32(1)}
    weights.write(folder, tensors)
    with pytest.raises(ValueError, match=r"pooler.dense.bias is \[\], the model wants \[16\]"):
        pretrained.read(folder)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_what_is_no_number_is_refused(value, tmp_path):
    folder = changed(FAMILIES / "bert/BertModel", tmp_path)
    tensors = weights.read(folder)
    bias = tensors["pooler.dense.bias"].copy()
    bias[3] = value
    weights.write(folder, tensors | {"pooler.dense.bias": bias})
    with pytest.raises(ValueError, match="pool/dense/bias holds what is no finite number; fetch"):
        pretrained.read(folder)


def changed(folder, tmp_path, **about):
    copy = shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile)
    told = json.loads((copy / "config.json").read_text()) | about
    (copy / "config.json").write_text(json.dumps({k: v for k, v in told.items() if v is not None}))
    return copy


def test_an_old_config_says_neither_family_nor_class(tmp_path):
    folder = changed(
        FAMILIES / "bert/BertForPreTraining", tmp_path, model_type=None, architectures=None
    )
    assert pretrained.read(folder).model.config.head == "pretraining"


@pytest.mark.parametrize(
    "about, error",
    [
        (dict(model_type="mamba"), 'model_type "mamba": tfx has '),
        (dict(architectures=["BertForFun"]), "BertForFun: want a class that ends with "),
        (dict(is_decoder=True), "is_decoder = true: tfx has no such variant of BERT"),
        (
            dict(num_hidden_layers=9),
            "these weights do not fit the model; missing: encoder.layer.",
        ),
    ],
)
def test_what_does_not_fit_is_told_in_one_line(about, error, tmp_path):
    folder = changed(FAMILIES / "bert/BertModel", tmp_path, **about)
    with pytest.raises(ValueError) as raised:
        pretrained.read(folder)
    assert error in str(raised.value) and "\n" not in str(raised.value)


def test_a_folder_without_a_config_is_none(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no config\.json; want a folder of Hugging Face"):
        pretrained.read(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json: not JSON .*; download it again"):
        pretrained.read(tmp_path)
