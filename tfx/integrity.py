"""Is a checkpoint whole? As far as its files say so without an array being read: Orbax, asked to
read what is damaged, fails in hundreds of lines and many ways.

An item is a database of the format OCDBT, "optionally-cooperative distributed B+tree" (the pages of
TensorStore describe it): a manifest, the nodes of a tree, and values, in the tree or in files of
which it knows the places. Beside it lie files of JSON. What a bit that flips does to an array does
not show here.
"""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import tensorstore as ts

SIDECARS = ("_METADATA", "_strings.json", "array_metadatas/*")
IN_DATABASE = {b"jax.Array", b"np.ndarray", b"scalar"}  # kinds of leaves


def damage(checkpoint: Path, items: Iterable[str]) -> str:
    """Say what is wrong with a checkpoint: "params cannot be read"; "" if nothing is.

    In a bucket, where objects are whole or not there, only folders can be missing.

    Args:
      items: the names of those that it has to hold.
    """
    for name in items:
        if why := fault(checkpoint / name):
            return f"{name} {why}"
    return "metrics cannot be read" if _is_no_json(checkpoint / "metrics" / "metrics") else ""


def _is_no_json(path: Path) -> bool:
    try:
        if isinstance(path, Path) and path.exists():
            json.loads(path.read_bytes())
    except (ValueError, OSError, RecursionError):
        return True
    return False


def fault(item: Path) -> str:
    """Say what is wrong with one item: "is missing", "cannot be read"; "" if nothing is."""
    if not item.exists():
        return "is missing"
    if not isinstance(item, Path):
        return ""
    try:
        kinds = {*re.findall(rb'"value_type": "([^"]*)"', (item / "_METADATA").read_bytes())}
        sidecars = [path for pattern in SIDECARS for path in item.glob(pattern)]
        if any(map(_is_no_json, sidecars)):
            return "cannot be read"
        if b"string" in kinds and item / "_strings.json" not in sidecars:
            return "cannot be read"
        if kinds & IN_DATABASE:
            base = ts.KvStore.open({"driver": "file", "path": f"{item}/"}).result()
            if any((item / path).stat().st_size < end for end, path in _places(base)):
                return "cannot be read"
    except (ValueError, OSError, LookupError, RecursionError):
        return "cannot be read"
    return ""


def _places(base: ts.KvStore) -> Iterator[tuple[int, str]]:
    """Where values lie that are in no node: up to which byte of which file."""
    nodes = [ts.ocdbt.dump(base).result()["versions"][-1]["root"]["location"]]
    while nodes:
        for entry in ts.ocdbt.dump(base, nodes.pop()).result()["entries"]:
            if "location" in entry:  # of another node
                nodes.append(entry["location"])
            elif "indirect_value" in entry:
                _, folder, path, offset, length = entry["indirect_value"].split(":")
                yield int(offset) + int(length), f"{folder}{path}"
