import hashlib
import io
import json
import struct
import zipfile
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from tfx.models import weights

FIXTURES = Path(__file__).parent.parent / "fixtures" / "hf"
TENSORS = {
    "matrix": np.arange(6, dtype=np.float32).reshape(2, 3),
    "half": np.array([1, -2], np.float16),
    "brain": np.array([[1.5], [2.5]], ml_dtypes.bfloat16),
    "ids": np.array([[3, 1, 2]], np.int64),
    "scalar": np.array(7, np.float64),
    "none": np.zeros((0, 4), np.float32),
    "flags": np.array([True, False]),
}


class Global(NamedTuple):
    module: str
    name: str


class Call(NamedTuple):
    function: object
    args: tuple


class Build(NamedTuple):
    thing: object
    state: object


class Saved(NamedTuple):
    """What torch pickles in place of a storage."""

    about: tuple


def pickled(x):
    """A pickle of `x`, written by hand: what torch.save writes and what an attacker would."""

    def body(x):
        match x:
            case Global(module, name):
                return f"c{module}\n{name}\n".encode()
            case Call(function, args):
                return body(function) + body(args) + b"R"
            case Build(thing, state):
                return body(thing) + body(state) + b"b"
            case Saved(about):
                return body(about) + b"Q"
            case None | bool():
                return {None: b"N", True: b"\x88", False: b"\x89"}[x]
            case str():
                return b"X" + struct.pack("<I", len(x.encode())) + x.encode()
            case int():
                digits = x.to_bytes(x.bit_length() // 8 + 1, "little", signed=True)
                return b"\x8a" + bytes([len(digits)]) + digits
            case tuple() | list():
                return b"(" + b"".join(map(body, x)) + (b"t" if isinstance(x, tuple) else b"l")
            case dict():
                return b"}(" + b"".join(body(y) for pair in x.items() for y in pair) + b"u"

    return b"\x80\x02" + body(x) + b"."


KINDS = {
    np.dtype(dtype): Global("torch", f"{name}Storage") for name, dtype in weights.STORAGES.items()
}
ORDERED = Call(Global("collections", "OrderedDict"), ())


def rebuilt(storage, offset, shape, strides):
    args = (Saved(storage), offset, shape, strides, False, ORDERED)
    return Call(Global("torch._utils", "_rebuild_tensor_v2"), args)


def as_torch(tensors, legacy=False):
    """{name: tensor} as torch pickles it, and {key: bytes} of its storages."""
    pickles, data = {}, {}
    for key, (name, x) in enumerate(tensors.items()):
        about = ("storage", KINDS[x.dtype], str(key), "cpu", x.size, *([None] if legacy else []))
        strides = tuple(n // x.itemsize for n in np.empty(x.shape, x.dtype).strides)
        pickles[name] = rebuilt(about, 0, x.shape, strides)
        data[str(key)] = x.tobytes()
    return pickles, data


def zipped_file(state, data=None, byteorder="little"):
    file, data = io.BytesIO(), data or {}
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickled(state))
        archive.writestr("archive/byteorder", byteorder)
        for key, content in data.items():
            archive.writestr(f"archive/data/{key}", content)
    return file.getvalue()


def legacy_file(tensors, little=True):
    state, data = as_torch(tensors, legacy=True)
    keys = sorted(data, reverse=True)  # an order of its own
    system = {"protocol_version": 1001, "little_endian": little, "type_sizes": {"int": 4}}
    pickles = (0x1950A86A20F9469CFC6C, 1001, system, state, keys)
    sizes = dict(zip(data, (x.size for x in tensors.values()), strict=True))
    rest = b"".join(struct.pack("<q", sizes[key]) + data[key] for key in keys)
    return b"".join(map(pickled, pickles)) + rest


@pytest.fixture
def put(tmp_path):
    def put(content, name="pytorch_model.bin"):
        (tmp_path / name).write_bytes(content)
        return tmp_path

    return put


def refuses(folder, *words, error=ValueError):
    with pytest.raises(error) as caught:
        weights.read(folder)
    told = str(caught.value)
    assert "\n" not in told and str(folder) in told, told
    for word in words:
        assert word in told, told


def same(found, wanted):
    assert list(found) == sorted(wanted)
    for name, x in wanted.items():
        y = found[name]
        assert (y.dtype, y.shape, y.tobytes()) == (x.dtype, x.shape, x.tobytes()), name


def test_what_is_written_is_read_bit_for_bit(tmp_path):
    weights.write(tmp_path / "new" / "folder", TENSORS, {"step": "3"})
    folder = tmp_path / "new" / "folder"
    same(weights.read(folder), TENSORS)
    assert [path.name for path in folder.iterdir()] == ["model.safetensors"]
    header = (folder / "model.safetensors").read_bytes()
    assert b'"format":"pt"' in header and b'"step":"3"' in header


def test_strides_do_not_reach_the_file(tmp_path):
    weights.write(tmp_path, {"turned": TENSORS["matrix"].T, "thin": np.arange(9)[::3]})
    found = weights.read(tmp_path)
    np.testing.assert_array_equal(found["turned"], [[0, 3], [1, 4], [2, 5]])
    np.testing.assert_array_equal(found["thin"], [0, 3, 6])


def test_large_models_are_cut_into_shards_and_read_whole(tmp_path):
    weights.write(tmp_path, TENSORS, shard=24)
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert files == [f"model-0000{n}-of-00004.safetensors" for n in (1, 2, 3, 4)]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_bytes())
    assert index["weight_map"].keys() == TENSORS.keys()
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in TENSORS.values())
    same(weights.read(tmp_path), TENSORS)


def test_writing_again_leaves_nothing_of_the_old_weights(tmp_path):
    less = {"half": TENSORS["half"]}
    for shard, tensors in ((1, TENSORS), (10**9, less), (1, TENSORS), (24, TENSORS), (10, less)):
        weights.write(tmp_path, tensors, shard=shard)
        same(weights.read(tmp_path), tensors)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_safetensors_win_over_torch_and_whole_files_over_shards(put):
    folder = put(zipped_file(*as_torch({"torch": np.ones(1)})))
    same(weights.read(folder), {"torch": np.ones(1)})
    weights.write(folder, TENSORS, shard=24)
    same(weights.read(folder), TENSORS)
    save_file({"whole": np.ones(2)}, folder / "model.safetensors")
    same(weights.read(folder), {"whole": np.ones(2)})


def test_folders_without_weights(tmp_path):
    refuses(tmp_path / "nowhere", "no such folder", error=FileNotFoundError)
    refuses(tmp_path, "no weights", "model.safetensors", error=FileNotFoundError)
    (tmp_path / "flax_model.msgpack").touch()
    refuses(tmp_path, "flax_model.msgpack", "from_flax=True", error=FileNotFoundError)
    (tmp_path / "adapter.safetensors").touch()
    refuses(tmp_path, "adapter.safetensors", "rename", error=FileNotFoundError)


@pytest.mark.parametrize("name", weights.NAMES)
def test_pointers_of_git_lfs(put, name):
    folder = put(
        b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 440449768\n", name
    )
    refuses(folder, "Git LFS", "git lfs pull", name)


def test_every_truncation_of_safetensors_is_seen(put):
    weights.write(put(b""), TENSORS)
    whole = (put(b"") / "model.safetensors").read_bytes()
    for size in (*range(20), *range(20, len(whole), 7), len(whole) - 1):
        refuses(put(whole[:size], "model.safetensors"), f"{size} bytes", "download it again")
    refuses(put(whole + b"\0", "model.safetensors"), "download it again")


def test_headers_that_lie(put):
    def file(header, data=b"\0" * 16, length=None):
        header = header if isinstance(header, bytes) else json.dumps(header).encode()
        return put(struct.pack("<Q", length or len(header)) + header + data, "model.safetensors")

    about = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    refuses(file({"a": about}, length=10**6), "header", "download it again")
    refuses(file({"a": about}, length=2**62), "header", "download it again")
    refuses(file({"a": about, "b": about}), "download it again")  # overlap
    refuses(file({"a": about | {"shape": [3]}}), "download it again")
    refuses(file(b"not json"), "JSON", "download it again")
    refuses(file({"a": {**about, "dtype": "F8_E4M3", "shape": [16], "data_offsets": [0, 16]}}),
            "float8", "bfloat16")  # fmt: skip


def test_a_flipped_bit_is_seen_where_a_sum_is_given(tmp_path):
    weights.write(tmp_path, TENSORS)
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    wanted = hashlib.sha256(whole).hexdigest()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    weights.read(tmp_path)  # nothing tells
    for line in (f"{wanted.upper()}  model.safetensors", f"{wanted} *./model.safetensors"):
        (tmp_path / "SHA256SUMS").write_text(f"{'0' * 64}  config.json\n{line}\n")
        refuses(tmp_path, "sha256", line[:64], "download it again")
    file.write_bytes(whole)
    same(weights.read(tmp_path), TENSORS)


def test_sums_of_shards(tmp_path):
    weights.write(tmp_path, TENSORS, shard=24)
    name = "model-00002-of-00004.safetensors"
    (tmp_path / "SHA256SUMS").write_text(f"{'0' * 64}  {name}\n")
    refuses(tmp_path, name, "download it again")


def test_shards_and_their_index_must_agree(tmp_path):
    path = tmp_path / "model.safetensors.index.json"

    def index(**where):
        path.write_text(json.dumps({"weight_map": where}))
        return tmp_path

    one, two = (TENSORS["half"], TENSORS["ids"])
    save_file({"a": one, "b": two}, tmp_path / "1.safetensors")
    save_file({"c": one}, tmp_path / "2.safetensors")
    good = {"a": "1.safetensors", "b": "1.safetensors", "c": "2.safetensors"}
    same(weights.read(index(**good)), {"a": one, "b": two, "c": one})
    refuses(index(**good, d="3.safetensors"), "3.safetensors", error=FileNotFoundError)
    refuses(index(**good, d="2.safetensors"), "d (missing)")
    refuses(index(a="1.safetensors", c="2.safetensors"), "b (not in the index)")
    save_file({"c": one, "b": two}, tmp_path / "2.safetensors")
    refuses(index(**good), "b (twice)")
    for name in ("../1.safetensors", "/etc/passwd", "..", ""):
        refuses(index(a=name), repr(name), "not a file beside it")
    for where in ("[]", "{", "{}", *(f'{{"weight_map": {x}}}' for x in ("3", "{}", '{"a": 3}'))):
        path.write_text(where)
        refuses(tmp_path, "not an index")


@pytest.mark.parametrize("file", [lambda x: zipped_file(*as_torch(x)), legacy_file])
def test_files_of_torch(put, file):
    dtypes = [x for x in weights.STORAGES.values()]
    tensors = TENSORS | {f"type{n}": np.ones((2, 2), x) for n, x in enumerate(dtypes)}
    same(weights.read(put(file(tensors))), tensors)


def test_views_of_one_storage(put):
    about = ("storage", KINDS[np.dtype("float32")], "0", "cpu", 12)
    state = {
        "turned": rebuilt(about, 0, (4, 3), (1, 4)),
        "row": rebuilt(about, 4, (4,), (1,)),
        "column": rebuilt(about, 1, (3,), (4,)),
        "number": rebuilt(about, 11, (), ()),
    }
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    views = {"turned": x.T, "row": x[1], "column": x[:, 1], "number": x[2, 3]}
    same(weights.read(put(zipped_file(state, {"0": x.tobytes()}))), views)


def test_state_dicts_as_modules_write_them(put):
    """An OrderedDict with an attribute, Parameters in it, and tensors of the oldest kind."""
    ((tensor,), data) = (pickles := as_torch({"x": TENSORS["matrix"]}))[0].values(), pickles[1]
    parameter = Call(Global("torch._utils", "_rebuild_parameter"), (tensor, True, ORDERED))
    oldest = Call(Global("torch._utils", "_rebuild_tensor"), tensor.args[:4])
    ordered = Call(Global("collections", "OrderedDict"), ([["x", parameter], ["y", oldest]],))
    state = Build(ordered, {"_metadata": {"": {"version": 1}}})
    same(weights.read(put(zipped_file(state, data))), dict.fromkeys("xy", TENSORS["matrix"]))


@pytest.mark.parametrize(
    "bad",
    [
        Call(Global("os", "system"), ("echo",)),
        Call(Global("builtins", "eval"), ("1",)),
        Call(Global("builtins", "getattr"), (ORDERED, "x")),
        Call(Global("torch.nn.modules.linear", "Linear"), ()),
        Call(Global("torch", "load"), ("x",)),
        Call(Global("torch._utils", "_rebuild_tensor_v3"), ()),
        Call(Global("torch.storage", "_load_from_bytes"), ("x",)),
    ],
)
def test_a_forbidden_global_is_named(put, bad):
    for state in ({"x": bad}, bad, [bad], Build(ORDERED, {"x": bad})):
        (name,) = {f"{bad.function.module}.{bad.function.name}"}
        refuses(put(zipped_file(state)), name, "no tensor", "save_file")


def test_a_pickle_cannot_change_what_it_is_given(put):
    before = {key: getattr(x, "__dict__", None) for key, x in weights.ADMITTED.items()}
    for key in weights.ADMITTED:
        for state in ({"make": None}, (None, {"make": None, "name": "x", "__call__": None})):
            folder = put(zipped_file({"x": Build(Global(*key), state)}))
            refuses(folder)
    tensors, data = as_torch(TENSORS)
    same(weights.read(put(zipped_file(tensors, data))), TENSORS)
    assert before == {key: getattr(x, "__dict__", None) for key, x in weights.ADMITTED.items()}


def test_what_is_not_names_and_tensors(put):
    tensors, data = as_torch({"x": TENSORS["matrix"]})
    refuses(put(zipped_file(tensors | {"epoch": 3}, data)), "'epoch'", "not a tensor", "save_file")
    refuses(put(zipped_file({"state_dict": tensors}, data)), "'state_dict'", "not a tensor")
    refuses(put(zipped_file([1], data)), "list", "save_file")
    refuses(put(zipped_file(tensors, data, "big")), "big-endian")
    refuses(put(legacy_file(TENSORS, little=False)), "big-endian")


def test_tensors_stay_inside_their_storage(put):
    about = ("storage", KINDS[np.dtype("float32")], "0", "cpu", 4)
    for offset, shape, strides in (
        (0, (5,), (1,)),
        (1, (4,), (1,)),
        (-1, (2,), (1,)),
        (0, (2, 2), (3, 1)),
        (3, (2,), (-1,)),
        (0, (10**9, 10**9), (0, 0)),
        (0, (2, 2), (1,)),
        (0, ("2",), (1,)),
    ):
        state = {"x": rebuilt(about, offset, shape, strides)}
        refuses(put(zipped_file(state, {"0": bytes(16)})), "download it again")
    whole = {"x": rebuilt(about, 0, (4,), (1,))}
    refuses(put(zipped_file(whole, {"0": bytes(15)})), "download it again")
    refuses(put(zipped_file(whole)), "download it again")


@pytest.mark.parametrize("file", [zipped_file(*as_torch(TENSORS)), legacy_file(TENSORS)])
def test_damaged_files_of_torch(put, file):
    """Cut anywhere, refused; a byte changed, refused or read, but nothing else happens."""
    for size in range(0, len(file), 5):
        refuses(put(file[:size]), "download it again")
    random = np.random.default_rng(0)
    for place in random.integers(0, len(file), 300):
        other = file[:place] + bytes([random.integers(256)]) + file[place + 1 :]
        try:
            weights.read(put(other))
        except ValueError as error:
            assert "\n" not in str(error)


def test_fixtures_hold_the_tensors_that_they_tell():
    folders = sorted(path.parent for path in FIXTURES.glob("*/*/meta.json"))
    assert len(folders) > 40
    for folder in folders:
        told = json.loads((folder / "meta.json").read_bytes())["tensors"]
        assert {name: list(x.shape) for name, x in weights.read(folder).items()} == told
