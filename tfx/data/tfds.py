"""How is a data set of TensorFlow Datasets read, without TensorFlow and without surprises?

By name, through `data_source`, from ArrayRecord files. What is not prepared yet is prepared;
where that needs the network, TensorFlow or files placed by hand, one line says so, within
seconds.
"""

import difflib
import hashlib
import importlib
import importlib.util
import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tfx.data import text
from tfx.data.rows import LONGER, keys_of

CHUNK = 1 << 13  # examples read at once: 5x faster than one by one
LISTED = 20  # files named in one message
LISTS = {"tokens": "text", "choices": "text", "tags": "label"}  # columns of lists, and of what


def open_split(
    name: str, split: str, fields: str, kind: str = "pair"
) -> tuple[Callable[[], Iterator[tuple[list, ...]]], str]:
    """(chunks, fingerprint) of `split` of the data set `name`, as `sources.Corpus` wants them.

    `split` is a TFDS expression such as "train[:90%]"; `fields` names a feature for each column of
    the kind, "en,de", or is "" for the data set's supervised_keys or the names that the columns
    have. Raises ValueError for whatever stands in the way.
    """
    tfds = _import()
    builder = _builder(tfds, name)
    columns = _columns(tfds, name, builder.info, fields, kind)
    if not builder.is_prepared():
        _prepare(tfds, name, builder)
    where = f"tfds:{name} {split}"
    try:
        rows = builder.as_data_source(split=split)
    except NotImplementedError:
        raise ValueError(
            f"tfds:{name}: {builder.data_dir} is prepared as {builder.info.file_format.value}, "
            "which cannot be read in any order; remove that folder, or set TFDS_DATA_DIR to "
            "another one, and it is prepared as array_record"
        ) from None
    except ValueError as error:
        splits = ", ".join(builder.info.splits)
        raise ValueError(f"{where}: {_first_line(error)} (it has: {splits})") from None

    def chunks():
        for start in range(0, len(rows), CHUNK):
            numbers = range(start, min(start + CHUNK, len(rows)))
            read = list(zip(numbers, rows.__getitems__(numbers), strict=True))
            yield tuple(
                [value(row[key], where, n + 1) for n, row in read] for key, value in columns
            )

    parts = ["tfds", builder.info.full_name, split, *(key for key, _ in columns)]
    identity = "\n".join(parts + [kind] * (kind not in ("pair", "references")))
    return chunks, hashlib.sha256(identity.encode()).hexdigest()


def _import():
    try:
        import tensorflow_datasets as tfds

        # Without TensorFlow, builders are found only once their module is imported.
        for module in ("translate", "text", "summarization", "question_answering"):
            importlib.import_module(f"tensorflow_datasets.{module}")
    except ImportError as error:
        raise ValueError(
            f'tfds: {error.name or error} is not installed; pip install "tfx-research[tfds]"'
        ) from None
    return tfds


def _builder(tfds, name: str):
    try:
        return tfds.builder(name, data_dir=os.environ.get("TFDS_DATA_DIR"))
    except tfds.core.DatasetNotFoundError:
        base, known = re.split("[/:]", name)[0], tfds.core.registered.list_imported_builders()
        raise ValueError(f'tfds:{name}: no data set "{base}"{_close(base, known)}') from None
    except (ValueError, AssertionError) as error:
        if "BuilderConfig" not in str(error):
            raise ValueError(f"tfds:{name}: {_first_line(error.__cause__ or error)}") from None
        base, _, config = name.partition("/")
        close = _close(config, tfds.builder_cls(base).builder_configs)
        raise ValueError(f'tfds:{name}: {base} has no config "{config}"{close}') from None


def _prepare(tfds, name: str, builder):
    """Download and write as ArrayRecord; a failure names the files and where to put them."""
    from tensorflow_datasets.core.download import downloader

    retries, downloader.MAX_RETRIES = downloader.MAX_RETRIES, 0  # offline: 0.2 s, not 204 s
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    try:
        builder.download_and_prepare(file_format="array_record", download_config=config)
    except Exception as error:  # of TFDS, requests, the builder: any kind at all
        if "No module named 'tensorflow'" in str(error):
            raise ValueError(
                f"tfds:{name}: preparing it needs TensorFlow, once; "
                'pip install "tfx-research[prepare]"'
            ) from error
        by_hand = "" if isinstance(error, ImportError) else _by_hand(builder)
        raise ValueError(
            f"tfds:{name}: not prepared in {builder.data_dir}, and preparing it failed "
            f"({type(error).__name__}: {_first_line(error)}){by_hand}"
        ) from error
    finally:
        downloader.MAX_RETRIES = retries


def _by_hand(builder) -> str:
    """What to download without TFDS, and the folder where TFDS looks for it."""
    root = Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    manual_dir = root / "downloads" / "manual"
    files = [
        f"{info.filename} ({info.size}) from {url}"
        for url, info in (builder.url_infos or {}).items()
        if info.filename and not (manual_dir / info.filename).exists()
    ]
    if not files:
        return ""
    more = f", and {len(files) - LISTED} more" * (len(files) > LISTED)
    tensorflow = ""
    if not importlib.util.find_spec("tensorflow"):
        tensorflow = '; most sets also need, once, pip install "tfx-research[prepare]"'
    return (
        f"; offline, put what it needs of these files into {manual_dir} and run again: "
        f"{', '.join(files[:LISTED])}{more}{tensorflow}"
    )


Value = Callable[[Any, str, int], Any]  # as it is stored, data set, number -> as rows have it


def _columns(tfds, name: str, info, fields: str, kind: str) -> list[tuple[str, Value]]:
    """The features that are the columns of a kind, and how their values are read."""
    wanted, are_pairs = keys_of(kind), kind in ("pair", "references")
    keys, said = tuple(fields.split(",")), f"data.fields={fields}"
    if kind == "labelled" and len(keys) == 3:
        wanted = LONGER[kind]
    if kind == "references":
        wanted = (*wanted, *["references"] * (len(keys) - 2))
    if kind == "pair" and len(keys) > 2:  # behind the first two there are further references
        keys = keys[:2]
    if not fields:
        supervised = info.supervised_keys if are_pairs or kind == "labelled" else None
        keys = supervised or (() if are_pairs else wanted)
        said = "supervised_keys" if are_pairs or supervised else f"the names {', '.join(wanted)}"
    pairs = zip(keys, wanted, strict=False)
    values = [key in info.features and _value(tfds, info.features[key], c) for key, c in pairs]
    if len(keys) == len(wanted) and all(values):
        return list(zip(keys, values, strict=True))
    usable = [k for k, feature in info.features.items() for c in wanted if _value(tfds, feature, c)]
    what = "two text features" if are_pairs else f"features for {', '.join(wanted)}"
    raise ValueError(
        f'tfds:{name}: {said} must name {what}; set data.fields="{",".join(wanted).upper()}" with '
        f"{'two of' if are_pairs else 'some of'}: "
        f"{', '.join(dict.fromkeys(usable)) or 'none in this data set'}"
    )


def _value(tfds, feature, column: str) -> Value | None:
    """How the values of a feature become those of a column; None where they cannot."""
    inner = getattr(feature, "feature", None)  # of a sequence
    if column == "references":
        one = _value(tfds, inner or feature, "text")
        return one and partial(_listed, one, inner is not None)
    if column in LISTS:
        one = None if inner is None else _value(tfds, inner, LISTS[column])
        return one and (lambda values, where, n: [one(value, where, n) for value in values])
    if column == "answers":
        parts = set(inner) if isinstance(inner, tfds.features.FeaturesDict) else set()
        return _answers if {"text", "answer_start"} <= parts else None
    if not isinstance(feature, tfds.features.Tensor) or feature.shape:
        return None
    if np.dtype(feature.np_dtype).kind == "O":
        return text.decode
    if column != "label":
        return None
    if isinstance(feature, tfds.features.ClassLabel):  # -1: of a test split, not told
        return lambda value, where, n: feature.int2str(value) if value >= 0 else -1
    number = float if np.issubdtype(feature.np_dtype, np.floating) else int
    return lambda value, where, n: number(value)


def _listed(one: Value, several: bool, value, where: str, n: int) -> list:
    return [one(each, where, n) for each in (value if several else [value])]


def _answers(value, where: str, n: int) -> list[tuple[str, int]]:
    pairs = zip(value["text"], value["answer_start"], strict=True)
    return [(text.decode(answer, where, n), int(start)) for answer, start in pairs]


def _close(word: str, known) -> str:
    close = difflib.get_close_matches(word, list(known), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def _first_line(error: Exception) -> str:
    return (str(error).strip() or "no reason given").splitlines()[0]
