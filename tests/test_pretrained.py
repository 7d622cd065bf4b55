"""A folder of Hugging Face becomes a model, or a line that says why not."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tfx import models, pretrained
from tfx.models import hf, weights

FAMILIES = Path(__file__).parent / "fixtures/hf"
FOLDERS = sorted(path.parent for path in FAMILIES.glob("*/*/config.json"))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_what_is_written_back_is_what_was_read(folder):
    """Bit for bit, biases of keys included, which no output shows."""
    found = pretrained.read(folder)
    config, boxed = found.model.config, models.shapes(found.model)
    format = models.family(config).FORMAT
    back = format.clean(hf.to_tensors(format, config, boxed, found.params, False))
    stored = format.clean(weights.read(folder))
    assert back.keys() <= stored.keys()
    for name, x in back.items():
        np.testing.assert_array_equal(x, stored[name], err_msg=name)
    again = hf.from_tensors(format, config, boxed, back)
    for one, other in zip(*map(_leaves, (again, found.params)), strict=True):
        np.testing.assert_array_equal(one, other)


def _leaves(tree):
    return [x for _, x in sorted(_paths(tree))]


def _paths(tree, path=()):
    if isinstance(tree, dict):
        return [leaf for key in tree for leaf in _paths(tree[key], (*path, key))]
    return [(path, tree)]


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
