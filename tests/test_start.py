"""What a run may start from, and what it takes its shape from."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from tfx import config as configs
from tfx import pretrained, start
from tfx.models import MODELS

FOLDERS = Path(__file__).parent / "fixtures/hf"


@pytest.fixture
def run(tmp_path):
    """A function of overrides: the workdir of a BERT that was pre-trained."""

    def make(**changes):
        c = configs.defaults("bert", "mini", "masked_lm")
        c.tokenizer.vocab = 1234
        c.model.update(changes)
        (tmp_path / "run/checkpoints").mkdir(parents=True)
        (tmp_path / "run/config.json").write_text(configs.to_json(configs.freeze(c)))
        return str(tmp_path / "run")

    return make


def test_a_size_is_where_nothing_was_learned_yet():
    for place, size in start.sizes().items():
        name, shape = size
        assert place.partition("-")[0] == name and type(shape) is MODELS[name].Config
    c = configs.freeze(start.start_from("gpt2-medium", "classify"))
    assert (c.model.width, c.model.head, c.init_from) == (1024, "classify", "")
    assert c.tokenizer.kind == "gpt2"
    assert start.start_from("xlnet", "span_qa") == start.start_from("xlnet-large", "span_qa")


def test_a_workdir_gives_shape_tokenizer_and_parameters(run):
    place = run(dropout=0.25, depth=3, position="rotary", activation="silu")
    c = configs.freeze(start.start_from(place, "classify"))
    assert (c.model.dropout, c.model.depth, c.model.position) == (0.25, 3, "rotary")
    assert (c.model.activation, c.model.head) == ("silu", "classify")
    assert c.init_from == place and c.tokenizer.vocab == 1234
    assert c.optim == configs.freeze(configs.defaults()).optim  # how it was trained is not taken


def test_a_head_that_fits_stays_as_it_is(run):
    place = run(head="pretraining", pooler="none", pooler_dropout=0.5)
    here = configs.freeze(start.start_from(place, "masked_lm")).model
    assert (here.head, here.pooler, here.pooler_dropout) == ("pretraining", "none", 0.5)
    here = configs.freeze(start.start_from(place, "classify")).model
    assert (here.head, here.pooler, here.pooler_dropout) == ("classify", "tanh", 0.0)


@pytest.mark.parametrize(
    "name, objective, head",
    [
        ("bert/BertForMaskedLM", "classify", "classify"),
        ("roberta/RobertaForMaskedLM", "span_qa", "span"),
        ("distilbert/DistilBertForMaskedLM", "tag", "tokens"),
        ("xlnet/XLNetLMHeadModel", "multiple_choice", "choice"),
    ],
)
def test_a_folder_of_hugging_face_is_a_place_too(name, objective, head):
    place = str(FOLDERS / name)
    family, model = pretrained.read(place)[:2]
    c = configs.freeze(start.start_from(place, objective))
    there = model.config
    assert type(c.model) is MODELS[family].Config and c.init_from == place
    for field in ("width", "depth", "heads", "mlp", "vocab", "max_length", "dropout", "position"):
        assert getattr(c.model, field) == getattr(there, field)
    assert c.model.head == head


def test_what_turns_half_a_batch_round_is_for_pre_training():
    c = configs.defaults("xlnet", "base", "permutation_lm")
    model = dataclasses.replace(configs.freeze(c).model, bi_data=True)
    assert not configs.headed(model, "classify").bi_data
    c.model.bi_data = True
    with pytest.raises(ValueError, match="no row is turned round here; set it to false"):
        configs.freeze(c)


def test_what_is_remembered_is_next_to_a_row():
    c = configs.defaults("xlnet", "base", "permutation_lm")
    c.model.reuse = 256
    assert configs.freeze(c).objective.memory == 0
    c.objective.memory = 384
    with pytest.raises(ValueError, match=r"model\.reuse = 256: .* set it to 0"):
        configs.freeze(c)


def test_the_first_objective_that_fits():
    chosen = lambda place: start.start_from(place, "text_to_text", "classify").objective.name
    assert {p: chosen(p) for p in ("bert", "gpt", "xlnet", "t5", "marian")} == {
        "bert": "classify",
        "gpt": "classify",
        "xlnet": "classify",
        "t5": "text_to_text",
        "marian": "text_to_text",
    }
    with pytest.raises(ValueError, match="transformer: its model cannot learn tag or classify"):
        start.start_from("transformer", "tag", "classify")


def test_words_of_which_one_may_be_a_place(tmp_path):
    placed = lambda arg: start.placed(arg, "bert-base", "a", "b")
    assert placed("") == ("bert-base", "a", False)
    assert placed("b,tiny") == ("bert-base", "b", True)
    for arg in (f"{tmp_path},b", f"b,{tmp_path}"):
        assert placed(arg) == (str(tmp_path), "b", False)
    assert placed("t5-v1_1-small") == ("t5-v1_1-small", "a", False)
    colon = tmp_path / "12:30"
    colon.mkdir()
    assert placed(f"{colon},tiny") == (str(colon), "a", True)
    for arg, match in [
        ("bert-bas", "choose from a, b, tiny, and .*; did you mean bert-base\\?"),
        (f"{tmp_path}/not", "not: no such folder; name a workdir or a folder"),
        ("bert,gpt", "and one of a workdir"),
        ("a,b", "choose from a, b, tiny"),
    ]:
        with pytest.raises(ValueError, match=match) as raised:
            placed(arg)
        assert "\n" not in str(raised.value)


def test_a_place_with_nothing_in_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"neither a workdir .* nor a folder of Hugging"):
        start.start_from(str(tmp_path), "classify")


def test_no_device_is_asked_for_before_the_processes_of_a_run_are_joined():
    code = f"""
from jax._src import xla_bridge
from tfx import config
config.configure("sst2:{FOLDERS}/bert/BertModel", [])
assert not xla_bridge.backends_are_initialized()
"""
    subprocess.run([sys.executable, "-c", code], check=True)
