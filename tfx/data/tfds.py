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
from pathlib import Path

from tfx.data import text

CHUNK = 1 << 13  # examples read at once: 5x faster than one by one
LISTED = 20  # files named in one message


def open_split(
    name: str, split: str, fields: str
) -> tuple[Callable[[], Iterator[tuple[list[str], list[str]]]], str]:
    """(chunks, fingerprint) of `split` of the data set `name`, as `sources.Corpus` wants them.

    `split` is a TFDS expression such as "train[:90%]"; `fields` two text features, "en,de",
    or "" for the data set's supervised_keys. Raises ValueError for whatever stands in the way.
    """
    tfds = _import()
    builder = _builder(tfds, name)
    keys = _keys(name, builder.info, fields, tfds.features.Text)
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
            source, target = (
                [text.decode(row[key], where, n + 1) for n, row in read] for key in keys
            )
            yield source, target

    identity = "\n".join(("tfds", builder.info.full_name, split, *keys))
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


def _keys(name: str, info, fields: str, kind: type) -> tuple[str, str]:
    """The features that are source and target."""
    keys = tuple(fields.split(",")) if fields else info.supervised_keys or ()
    texts = [key for key, feature in info.features.items() if isinstance(feature, kind)]
    if len(keys) != 2 or not all(key in texts for key in keys):
        have = f"data.fields={fields}" if fields else "supervised_keys"
        raise ValueError(
            f'tfds:{name}: {have} must name two text features; set data.fields="SOURCE,TARGET" '
            f"with two of: {', '.join(texts) or 'none in this data set'}"
        )
    return keys


def _close(word: str, known) -> str:
    close = difflib.get_close_matches(word, list(known), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def _first_line(error: Exception) -> str:
    return (str(error).strip() or "no reason given").splitlines()[0]
