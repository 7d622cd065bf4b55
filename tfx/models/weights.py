"""Which tensors does a folder of Hugging Face hold? Read whole or not at all, and written back.

In order of preference: model.safetensors, model.safetensors.index.json with its shards, and the
same two of torch, pytorch_model.bin and pytorch_model.bin.index.json. Files of torch are
pickles, which can run anything: here they can name a few constructors of tensors and no more.
"""

import functools
import hashlib
import json
import math
import os
import pickle
import re
import stat
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError
from safetensors import numpy as safetensors

NAMES = ("model.safetensors", "pytorch_model.bin")
SUMS = "SHA256SUMS"  # lines of `sha256sum`
SHARD = 5 * 10**9  # bytes, above which a file is cut
LFS = b"version https://git-lfs"
AGAIN = "download it again"
CONVERT = (
    "if you trust who made it, convert it: state = torch.load(file, weights_only=False), "
    "then safetensors.torch.save_file(state, 'model.safetensors')"
)
OTHERS = {  # files that hold weights, and what makes them safetensors
    "*.safetensors": "if they are a whole model, rename them to model.safetensors",
    "tf_model.h5": "transformers 4 converts it: from_pretrained(folder, from_tf=True)",
    "model.ckpt*": "transformers 4 converts it: from_pretrained(folder, from_tf=True)",
    "flax_model*.msgpack": "transformers 4 converts it: from_pretrained(folder, from_flax=True)",
    "*.bin": "if they are a whole model, rename them to pytorch_model.bin",
    "*.gguf": "download the safetensors of this model instead",
}


def read(folder: str | os.PathLike) -> dict[str, np.ndarray]:
    """Every tensor of a folder by name, as it is stored; bfloat16 too. What a file SHA256SUMS there
    lists must hash to what it says.

    Raises:
      FileNotFoundError: there is no folder, no weights in it, or a shard is missing.
      ValueError: the weights are damaged, not downloaded, or want more than tensors.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; want one with config.json and weights")
    for path in (folder / f"{name}{end}" for name in NAMES for end in ("", ".index.json")):
        if not path.is_file():
            continue
        tensors = _read_shards(path) if path.suffix == ".json" else _read_file(path)
        return dict(sorted(tensors.items()))
    for pattern, fix in OTHERS.items():
        if found := sorted(path.name for path in folder.glob(pattern)):
            raise FileNotFoundError(f"{folder}: of weights only {', '.join(found)}; {fix}")
    raise FileNotFoundError(f"{folder}: no weights; want model.safetensors or its index")


def write(
    folder: str | os.PathLike,
    tensors: Mapping[str, Any],
    metadata: Mapping[str, str] | None = None,
    shard: int = SHARD,
) -> None:
    """Write model.safetensors, or shards and their index; never seen half written.

    Weights that were there before in either form are replaced.

    Args:
      tensors: {name: array}. Tied ones under one name.
      metadata: added to what transformers wants to find in a file, {"format": "pt"}.
      shard: bytes of a file, at most, unless a single tensor has more.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    name, metadata = NAMES[0], {"format": "pt"} | dict(metadata or {})
    # The library writes the bytes as they lie in memory, whatever the strides.
    arrays = {key: np.require(x, requirements="C") for key, x in tensors.items()}
    parts, size = [{}], 0
    for key, x in arrays.items():
        if parts[-1] and size + x.nbytes > shard:
            parts, size = [*parts, {}], 0
        parts[-1][key] = x
        size += x.nbytes
    count, stem = len(parts), name.removesuffix(".safetensors")
    files = [f"{stem}-{n:05}-of-{count:05}.safetensors" for n in range(1, count + 1)]
    files = files if count > 1 else [name]
    for file, part in zip(files, parts, strict=True):
        (folder / f".{file}.part").touch()
        mode = stat.S_IMODE((folder / f".{file}.part").stat().st_mode)
        safetensors.save_file(part, folder / f".{file}.part", metadata)
        (folder / f".{file}.part").chmod(mode)  # the library lets nobody else read it
    # Whoever reads meanwhile finds the old weights, none or the new ones, but no mixture.
    index = folder / f"{name}.index.json"
    index.unlink(missing_ok=True)
    for file in files:
        os.replace(folder / f".{file}.part", folder / file)
    if count > 1:
        where = {key: file for file, part in zip(files, parts, strict=True) for key in part}
        total = sum(x.nbytes for x in arrays.values())
        text = json.dumps({"metadata": {"total_size": total}, "weight_map": where}, indent=2)
        (folder / f".{index.name}.part").write_text(text + "\n", encoding="utf-8")
        os.replace(folder / f".{index.name}.part", index)
        (folder / name).unlink(missing_ok=True)
    for path in folder.glob(f"{stem}-*-of-*.safetensors"):
        if path.name not in files:
            path.unlink()


def _read_file(path: Path) -> dict[str, np.ndarray]:
    with path.open("rb") as file:
        if file.read(len(LFS)) == LFS:
            fix = "run `git lfs pull` in the folder, or download the file itself"
            raise ValueError(f"{path}: a pointer of Git LFS, not the weights; {fix}")
    if wanted := _listed_sum(path):
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != wanted.lower():
            raise ValueError(f"{path}: sha256 is {found}, not {wanted}: damaged; {AGAIN}")
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)


def _listed_sum(path: Path) -> str:
    sums = path.with_name(SUMS)
    lines = sums.read_text(encoding="utf-8").splitlines() if sums.is_file() else []
    found = (re.fullmatch(r"([0-9a-fA-F]{64}) [ *](?:\./)?(.+)", line) for line in lines)
    return next((match[1] for match in found if match and match[2] == path.name), "")


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        return safetensors.load_file(path)
    except SafetensorError as error:
        size = path.stat().st_size
        text = f"{path}: cut off or damaged, {size} bytes ({error}); {AGAIN}"
        raise ValueError(text) from None
    except AttributeError as error:  # of numpy, which has not this type
        fix = "download a copy in float32, float16 or bfloat16"
        raise ValueError(f"{path}: a type of numbers that is not read ({error}); {fix}") from None


def _read_shards(index: Path) -> dict[str, np.ndarray]:
    """All tensors of an index: each in the one file that it names, and no others there."""
    try:
        where = json.loads(index.read_bytes())["weight_map"]
        files = {name: [] for name in sorted(set(where.values()))}
        for key, name in where.items():
            files[name].append(key)
        beside = re.compile(r"[^/\\]+\.(safetensors|bin)")
        strange = [name for name in files if not beside.fullmatch(name)]
        if not files:
            raise KeyError("weight_map")
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ValueError(f"{index}: not an index with a weight_map; {AGAIN}") from None
    if strange:
        raise ValueError(f"{index}: {strange[0]!r} is not a file beside it; {AGAIN}")
    if missing := [name for name in files if not index.with_name(name).is_file()]:
        raise FileNotFoundError(f"{index}: it names {', '.join(missing)}, not there; {AGAIN}")
    tensors = {}
    for name, keys in files.items():
        found = _read_file(index.with_name(name))
        wrong = [(key, "twice") for key in found if where.get(key, name) != name]
        wrong += [(key, "not in the index") for key in found if key not in where]
        wrong += [(key, "missing") for key in keys if key not in found]
        if wrong:
            told = ", ".join(f"{key} ({what})" for key, what in sorted(wrong))
            raise ValueError(f"{index.with_name(name)}: {told}: of another model; {AGAIN}")
        tensors |= found
    return tensors


class _Refused(Exception):
    """A file of torch wants more than tensors."""


class _Sealed:
    """Something that a pickle may have but not change: BUILD finds this in the way."""

    __slots__ = ()

    def __setstate__(self, state):
        pass


class _Dict(_Sealed, dict):
    """In place of an OrderedDict; a module's has attributes, which say nothing of tensors."""

    __slots__ = ()


class _Storage(NamedTuple):
    """Numbers in a row, under a key in the file."""

    key: str
    dtype: str
    count: int


class _Tensor(NamedTuple):
    """A view of a storage, in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def of(self, data: bytes) -> np.ndarray:
        dtype = np.dtype(self.storage.dtype)
        last = sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))
        whole, count = len(data) // dtype.itemsize, math.prod(self.shape)
        if min((self.offset, *self.shape, *self.strides)) < 0 or count > whole:
            raise ValueError("a tensor is larger than its storage")
        if count and self.offset + last >= whole:
            raise ValueError("a tensor ends after its storage")
        flat = np.frombuffer(data, dtype)[self.offset :]
        strides = [stride * dtype.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(flat, self.shape, strides).copy()


class _Type(_Sealed):
    """In place of a class of storages."""

    __slots__ = ("name",)

    def __init__(self, name):
        self.name = name


class _Call(_Sealed):
    """In place of a function that makes a tensor of what was pickled for it."""

    __slots__ = ("make",)

    def __init__(self, make):
        self.make = make

    def __call__(self, *args):
        return self.make(*args)


STORAGES = {
    "Double": "float64",
    "Float": "float32",
    "Half": "float16",
    "BFloat16": ml_dtypes.bfloat16,
    "Long": "int64",
    "Int": "int32",
    "Short": "int16",
    "Char": "int8",
    "Byte": "uint8",
    "Bool": "bool",
}
ADMITTED = {
    ("collections", "OrderedDict"): _Dict,
    # The rest of what is pickled says whether and how it learns.
    ("torch._utils", "_rebuild_tensor"): _Call(lambda *args: _Tensor(*args[:4])),
    ("torch._utils", "_rebuild_tensor_v2"): _Call(lambda *args: _Tensor(*args[:4])),
    ("torch._utils", "_rebuild_parameter"): _Call(lambda tensor, *_: tensor),
    **{("torch", f"{name}Storage"): _Type(dtype) for name, dtype in STORAGES.items()},
}


class _Unpickler(pickle.Unpickler):
    """Knows the names of ADMITTED and no others; keeps a list of the storages it meets."""

    def __init__(self, file):
        super().__init__(file)
        self.storages = {}

    def find_class(self, module, name):
        if (module, name) not in ADMITTED:
            raise _Refused(f"it names {module}.{name}, which is no tensor")
        return ADMITTED[module, name]

    def persistent_load(self, pid):
        kind, dtype, key, _, count, *view = pid
        if kind != "storage" or any(view):
            raise _Refused("it has a storage of an old kind")
        return self.storages.setdefault(key, _Storage(key, dtype.name, count))


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    """What torch.save wrote: a zip archive since torch 1.6, a row of pickles before."""
    try:
        with path.open("rb") as file:
            zipped = file.peek(4).startswith(b"PK\3\4")
            state, data = (_zipped if zipped else _legacy)(file)
            if not isinstance(state, dict):
                raise _Refused(f"it holds a {type(state).__name__}, not names and tensors")
            if others := [f"{key!r}" for key, x in state.items() if not isinstance(x, _Tensor)]:
                raise _Refused(f"{', '.join(others[:3])} in it: not a tensor")
            return {str(key): x.of(data(x.storage.key)) for key, x in state.items()}
    except _Refused as error:
        raise ValueError(f"{path}: {error}; {CONVERT}") from None
    except Exception as error:  # whatever a pickle of random bytes makes python raise
        told = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"{path}: cut off or damaged ({told}); {AGAIN}") from None


def _zipped(file: BinaryIO) -> tuple[Any, Callable[[str], bytes]]:
    archive = zipfile.ZipFile(file)
    (pickled,) = (name for name in archive.namelist() if re.fullmatch(r"[^/]+/data\.pkl", name))
    root = pickled.removesuffix("data.pkl")
    if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
        raise _Refused("it was written on a big-endian machine")
    with archive.open(pickled) as part:
        state = _Unpickler(part).load()
    # Neighbours may be views of one storage: keep the last.
    return state, functools.lru_cache(1)(lambda key: archive.read(f"{root}data/{key}"))


def _legacy(file: BinaryIO) -> tuple[Any, Callable[[str], bytes]]:
    magic, _, system = (_Unpickler(file).load() for _ in range(3))
    if magic != 0x1950A86A20F9469CFC6C:
        raise ValueError("it does not begin as files of torch.save do")
    if not system["little_endian"]:
        raise _Refused("it was written on a big-endian machine")
    unpickler = _Unpickler(file)
    state, keys, data = unpickler.load(), _Unpickler(file).load(), {}
    for key in keys:
        storage, (count,) = unpickler.storages[key], struct.unpack("<q", file.read(8))
        size = count * np.dtype(storage.dtype).itemsize
        data[key] = file.read(size)
        if count != storage.count or len(data[key]) != size:
            raise EOFError(f"storage {key} is not whole")
    return state, data.__getitem__
