#!/usr/bin/env python3
"""Fetch a public data set, check every file, and leave in a folder what data.train can name.

    python scripts/prepare_data.py multi30k --out data/multi30k

Files that already lie in the folder, as they are or as .gz, are checked, never fetched again;
without a network, the message says which ones to put there by hand. A file whose sha256 is
published is held to it; of any other, the first that comes is trusted, and its sha256, with those
of the files made (train.de, train.en, ...), is kept in DIR/SHA256SUMS and held to from then on.
"""

import argparse
import contextlib
import gzip
import hashlib
import json
import re
import shutil
import sys
import tarfile
import tempfile
import tomllib
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from http.client import HTTPException
from itertools import chain
from pathlib import Path
from typing import BinaryIO

DATA_SETS = tomllib.loads(Path(__file__).with_suffix(".toml").read_text())
TIMEOUT = 10  # seconds without a byte from a server
MEMBERS, BYTES = 10_000, 64 << 30  # of an archive; the real ones hold less
SPLITS = ("train", "valid", "test")
TALK_TAG = re.compile(rb"\s*</?(url|keywords|speaker|talkid|reviewer|translator|doc)\b")
LINE_CAP = 1 << 20  # bytes, as in tfx/data/text.py


def prepare(name: str, folder: Path):
    """Check, fetch, unpack, reshape; ValueError says in one line what a person must do."""
    data, recorded = DATA_SETS[name], _read_sums(folder / "SHA256SUMS")
    files, sums = dict(_files(data["from"])), {}
    for file, (sha256, _) in files.items():
        if path := _found(folder, file):
            sums[file] = _checked(path, sha256 or recorded.get(file), path != folder / file)
    print(f"{name}: {len(sums)} of {len(files)} files found in {folder}, none of them damaged")
    made = [f"{split}.{side}" for split in SPLITS for side in data.get("languages", ())]
    made += [file for file, *_ in data.get("make", ())]
    ready = _ready(made, dict(_table(data.get("known", ""))) | recorded, folder)
    if made and len(ready) == len(made):
        print(f"{name}: ready: {' '.join(made)}")
        return
    ready = {} if "languages" in data else _reshape(data, folder, sums, ready)
    needed = {source for file, source, *_ in data.get("make", ()) if file not in ready}
    for file in [file for file in files if file not in sums and (file in needed or not needed)]:
        try:
            sums[file] = _fetch(files[file][1], folder / file, files[file][0])
        except OSError as error:
            raise ValueError(
                f"{name}: {file} cannot be fetched ({error}); put into {folder} by hand, then "
                f"run again: {_by_hand(data['from'], sums)}"
            ) from None
    trusted = [file for file, (sha256, _) in files.items() if not sha256 and file in sums]
    if "languages" in data:
        _write_sums(folder, sums | _make(data, folder))
    elif made or trusted:
        _write_sums(folder, sums | _reshape(data, folder, sums, ready))
    for file in trusted:
        print(f"{file}: no sha256 is published; on first use trusted and kept: {sums[file]}")
    print(f"{name}: ready: {' '.join(made) or f'{len(files)} files'}")


def _files(places: list[dict]) -> Iterator[tuple[str, tuple[str, list[str]]]]:
    """(file in the folder, (its sha256 or "", URLs))."""
    for place in places:
        for file, sha256 in _table(place["sha256"]):
            here = place.get("folder", "") + file
            yield here, (sha256.strip("?"), [url + file for url in place["urls"]])


def _table(rows: str) -> Iterator[tuple[str, str]]:
    """(file, sha256) from what sha256sum prints."""
    for row in rows.strip().splitlines():
        sha256, file = row.split()
        yield file, sha256


def _found(folder: Path, file: str) -> Path | None:
    """Where a file lies; a plain one may lie there gzipped."""
    return next(filter(Path.exists, (folder / file, folder / f"{file}.gz")), None)


def _ready(made: list[str], known: dict[str, str], folder: Path) -> dict[str, str]:
    """What was made before, here or elsewhere, unpacked, and its sha256."""
    found = {file: path for file in made if file in known and (path := _found(folder, file))}
    ready = {file: _checked(at, known[file], at != folder / file) for file, at in found.items()}
    for file, at in found.items():
        if at != folder / file:  # configs name the plain one
            with _whole(folder / file) as part, gzip.open(at) as packed, part.open("wb") as plain:
                shutil.copyfileobj(packed, plain)
    return ready


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A path beside another one, which takes its place when all has been written."""
    part = path.with_name(f"{path.name}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _by_hand(places: list[dict], have: dict) -> str:
    """What to get from where."""
    lists = {
        " or ".join(place["urls"]): [file for file, _ in _files([place]) if file not in have]
        for place in places
    }
    return "; ".join(f"{', '.join(files)} from {urls}" for urls, files in lists.items() if files)


def _checked(path: Path, expected: str | None = None, unpack: bool = False) -> str:
    try:
        with (gzip.open if unpack else open)(path, "rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}: damaged gzip data ({error}); delete it, run again") from None
    if expected and sha256 != expected:
        raise ValueError(f"{path}: sha256 is {sha256}, not {expected}; delete it and run again")
    return sha256


def _fetch(urls: list[str], path: Path, expected: str) -> str:
    """Download under another name, check, rename. OSError when no URL gives the file."""
    reasons = []
    for url in urls:
        print(f"{path.name} <- {url}", flush=True)
        try:
            with _whole(path) as part:
                _download(url, part)
                sha256 = _checked(part)
                if expected and sha256 != expected:
                    what = f"sha256 of what came is {sha256}, not {expected}"
                    raise ValueError(f"{url}: {what}; retry")
            return sha256
        except (OSError, HTTPException) as error:
            reasons.append(str(getattr(error, "reason", error)))
    raise OSError("; ".join(reasons))


def _download(url: str, path: Path):
    with urllib.request.urlopen(url, timeout=TIMEOUT) as response, path.open("wb") as out:
        shutil.copyfileobj(response, out, 1 << 20)
        length = int(response.headers.get("Content-Length", out.tell()))
        if length != out.tell():
            raise OSError(f"{out.tell():,} of {length:,} bytes came")


def _reshape(data: dict, folder: Path, sums: dict, ready: dict) -> dict[str, str]:
    """Make what is not ready of the files that are there; the sha256 of all that is made."""
    ready = dict(ready)
    for file, source, *part in data.get("make", ()):
        if file in ready or source not in sums:
            continue
        print(file, "<-", source, *part, flush=True)
        with _whole(folder / file) as scratch, scratch.open("wb") as out:
            _shape(_found(folder, source), part, data.get("pairs"), out)
        ready[file] = _checked(folder / file)
        _write_sums(folder, sums | ready)
    return ready


def _shape(path: Path, part: list[str], pairs: dict | None, out: BinaryIO):
    """A member of a .zip; a share of a text, from:to; or pairs of rows that have several keys."""
    if path.suffix == ".zip":
        try:
            with zipfile.ZipFile(path) as archive, archive.open(part[0]) as member:
                shutil.copyfileobj(member, out, 1 << 20)
        except (zipfile.BadZipFile, zlib.error, EOFError, KeyError) as error:
            raise ValueError(f"{path}: damaged, or another archive ({error}); delete it") from None
        return
    with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as stream:
        content = stream.read()
    if part:
        first, last = (int(float(at) * len(content)) for at in part[0].split(":"))
        out.write(content[first:last])
        return
    for number, line in enumerate(content.decode().removesuffix("\n").split("\n"), 1):
        try:
            row = json.loads(line)
            texts = [_flat(row[key]) for key in pairs["target"] if key in row]
            first, *further = [text for several in texts for text in several]
            (source,) = _flat(row[pairs["source"]], glue=True)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}:{number}: not a row of it ({error!r}); delete it") from None
        pair = {"source": source, "target": first, "references": further}
        out.write(f"{json.dumps(pair, ensure_ascii=False)}\n".encode())


def _flat(value: str | list[str], glue: bool = False) -> list[str]:
    """Texts; of a list each on one line, and all together as one where they are sentences."""
    if isinstance(value, str):
        return [value]
    return [" ".join(text.split()) for text in ([" ".join(value)] if glue else value)]


def _make(data: dict, folder: Path) -> dict[str, str]:
    """Unpack what is needed, write the text files, and return their sha256."""
    sides = list(zip(data["languages"], ("src", "ref"), strict=True))
    parts = [  # (split, archive, its member for each language)
        (split, archive, [member.format(side=side, role=role) for side, role in sides])
        for split in SPLITS
        for archive, member in data.get(split, ())
    ]
    made = []
    with tempfile.TemporaryDirectory(dir=folder, prefix=".unpack-") as scratch:
        for archive in {archive: None for _, archive, _ in parts}:
            print(f"unpacking {archive}", flush=True)
            wanted = {name for _, a, names in parts if a == archive for name in names}
            unpack(folder / archive, wanted, Path(scratch, archive))
        for split in {split: None for split, _, _ in parts}:
            paths = [[Path(scratch, a, n) for n in names] for s, a, names in parts if s == split]
            pairs = chain.from_iterable(map(_pairs, paths))
            made += _write(data, split, pairs, Path(scratch))
        for path in made:
            path.replace(folder / path.name)
    return {path.name: _checked(folder / path.name) for path in made}


def unpack(archive: Path, wanted: set[str], into: Path):
    """Extract the `wanted` members; nothing outside `into`, nothing but plain files."""
    wanted, size = set(wanted), 0
    into.mkdir()
    try:
        with tarfile.open(archive, "r|*") as tar:
            for count, member in enumerate(tar, 1):
                size += member.size
                if count > MEMBERS or size > BYTES:
                    raise ValueError(f"{archive}: over {MEMBERS:,} members or {BYTES:,} bytes")
                tarfile.data_filter(member, into)  # a hostile archive: refused as a whole
                if (name := member.name.removeprefix("./")) in wanted:
                    if not member.isreg():
                        raise ValueError(f"{archive}: {name} is not a plain file")
                    tar.extract(member, into, filter="data")
                    wanted.remove(name)
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{archive}: unsafe or damaged archive ({error}); delete it") from None
    if wanted:
        raise ValueError(f"{archive}: does not hold {', '.join(sorted(wanted))}; delete it")


def _pairs(paths: list[Path]) -> Iterator[tuple[bytes, bytes]]:
    try:
        yield from zip(*map(_lines, paths), strict=True)
    except ValueError as error:
        raise ValueError(f"{paths[0]} and {paths[1].name} are not parallel ({error})") from None


def _lines(path: Path) -> Iterator[bytes]:
    """Sentences of a text file, .gz, SGML or XML test set, or a training file with tags."""
    if path.suffix in (".sgm", ".xml"):
        yield from re.findall(rb"<seg[^>]*>\s*(.*?)\s*</seg>", path.read_bytes())
        return
    with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as stream:
        for line in stream:
            line = line.removesuffix(b"\n").removesuffix(b"\r")
            if ".tags." in path.name:
                if TALK_TAG.match(line):
                    continue
                line = re.sub(rb"</?(title|description)>", b"", line).strip()
            yield line


def _write(data: dict, split: str, pairs: Iterator, folder: Path) -> list[Path]:
    """Two files a split; a pair that no reader could use is left out, and counted."""
    every, longest = (data.get(key, 0) * (split == "train") for key in ("held_out", "words"))
    splits = ["train", "valid"] if every else [split]
    made = {s: [folder / f"{s}.{side}" for side in data["languages"]] for s in splits}
    kept = dropped = 0
    with contextlib.ExitStack() as stack:
        out = {s: [stack.enter_context(path.open("wb")) for path in made[s]] for s in splits}
        for pair in pairs:
            if not all(map(_usable, pair)) or (longest and not _alike(pair, longest)):
                dropped += 1
                continue
            kept += 1
            to = "valid" if every and kept % every == 0 else split
            for stream, line in zip(out[to], pair, strict=True):
                stream.write(line + b"\n")
    print(f"{' + '.join(splits)}: {kept:,} pairs; {dropped:,} left out", flush=True)
    return [path for paths in made.values() for path in paths]


def _usable(line: bytes) -> bool:
    """Not blank, and what tfx/data/text.py reads."""
    with contextlib.suppress(UnicodeDecodeError):
        return bool(line.decode().strip()) and b"\0" not in line and len(line) <= LINE_CAP
    return False


def _alike(pair: tuple[bytes, bytes], longest: int) -> bool:
    """Moses' rule for training pairs, 1.5 times the words at most, punctuation marks counted."""
    short, long = sorted(len(re.findall(r"\w+|[^\w\s]", line.decode())) for line in pair)
    return long <= longest and long <= 1.5 * short


def _write_sums(folder: Path, sums: dict[str, str]):
    rows = (f"{sha256}  {file}\n" for file, sha256 in sorted(sums.items()))
    with _whole(folder / "SHA256SUMS") as part:
        part.write_text("".join(rows))


def _read_sums(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    rows = [re.fullmatch(r"([0-9a-f]{64}) [ *](.+)", row) for row in path.read_text().splitlines()]
    if not all(rows):
        raise ValueError(f"{path}: not a list of sha256 sums; delete it and run again")
    return {row[2]: row[1] for row in rows}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="data sets:\n" + "\n".join(f"  {n:14} {d['about']}" for n, d in DATA_SETS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=DATA_SETS, metavar="NAME", help=", ".join(DATA_SETS))
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="made if missing")
    args = parser.parse_args(argv)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        prepare(args.name, args.out.resolve())
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
