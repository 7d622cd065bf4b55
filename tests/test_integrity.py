"""What can be known of an item of a checkpoint without reading its arrays."""

import shutil

import jax.numpy as jnp
import pytest
import tensorstore as ts
from orbax.checkpoint import v1 as ocp

from tfx import integrity


@pytest.fixture(scope="module")
def item(tmp_path_factory):
    """An array that lies in a file of its own, a small one, and texts."""
    place = tmp_path_factory.mktemp("saved") / "1"
    items = {"it": {"large": jnp.arange(5000.0), "small": jnp.ones(2), "text": "one"}}
    ocp.save_checkpointables(place, items)
    return place / "it"


def test_what_is_whole_has_no_fault(item):
    assert integrity.fault(item) == ""
    assert integrity.fault(item.parent / "another") == "is missing"
    assert [end for end, _ in integrity._places(ts.KvStore.open(f"file://{item}/").result())]


def needed(item):
    """The files without which nothing is read: leftovers of writing are in the folder too."""
    spare = {"commit_success.txt", "_sharding"}
    files = [path for path in item.rglob("*") if path.is_file() and path.name not in spare]
    return [path for path in files if path.parent.name != "ocdbt.process_0"]


def test_every_file_that_is_cut_short_or_gone_is_a_fault(item, tmp_path):
    files = needed(item)
    found = {"": 0, "cannot be read": 0}
    for number, path in enumerate(files):
        for how in ("zero", "half", "gone"):
            copy = shutil.copytree(item, tmp_path / f"{number}{how}")
            there = copy / path.relative_to(item)
            content = there.read_bytes()
            there.write_bytes(b"" if how == "zero" else content[: len(content) // 2])
            if how == "gone":
                there.unlink()
            fault = integrity.fault(copy)
            found[fault] += 1
            optional = how == "gone" and "array_metadatas" in f"{path}"
            unused = path.parent.parent.name == "ocdbt.process_0"  # written anew by the end
            assert fault or optional or unused, (path, how)
    assert found["cannot be read"] > 12


def test_a_tree_of_many_nodes_is_walked(tmp_path):
    settings = {"max_decoded_node_bytes": 300, "max_inline_value_bytes": 20}
    spec = {"driver": "ocdbt", "base": f"file://{tmp_path}/", "config": settings}
    store = ts.KvStore.open(spec).result()
    with ts.Transaction() as all_at_once:
        for number in range(60):
            store.with_transaction(all_at_once).write(f"{number:03}", b"x" * 50).result()
    base = ts.KvStore.open(f"file://{tmp_path}/").result()
    places = [*integrity._places(base)]
    assert len(places) == 60
    for end, path in places:
        assert (tmp_path / path).stat().st_size >= end
