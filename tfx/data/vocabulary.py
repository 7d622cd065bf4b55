"""How does text become the ids that a model was trained on, and what goes around them?

A `Vocabulary` is what the tokenizer files of a Hugging Face folder say. They are read the same
way whether they were downloaded (`of_folder`), are learned here (`learn`, data/pieces.py) or
were kept beside a run (`save`, `load`). Ids of WordPiece and BPE are those of the `tokenizers`
library, ids of SentencePiece models those of the sentencepiece library.

Where a text spells a special token ("[MASK]", "<extra_id_0>"), it gets that token's id, as from
the families' own tokenizers; chars and bytes take every text as it is.
"""

import functools
import hashlib
import itertools
import json
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from tfx.data import output, pieces
from tfx.data.families import (
    FAMILIES,
    LAYOUTS,
    ROLES,
    SETTINGS,
    Ends,
    Files,
    around,
    marian,
    parsed,
)
from tfx.data.segment import Fast, SentencePieces

HIDDEN = {"pad", "eos", "bos", "cls", "sep"}  # what decode leaves out
ROUNDING = (1, 2, 4, 8, 16, 32, 64, 128)  # rows of an embedding are a multiple of one of these
FOLDER = "vocabulary"  # in a workdir


class Vocabulary:
    """Text to ids and back, for one model.

    family: a key of FAMILIES. special: ids of those ROLES that exist. files: what makes it, as
    a Hugging Face folder holds them. target: the vocabulary of translations, where a model has
    another for them (Marian), else this one.
    """

    def __init__(self, family: str, model: Fast | SentencePieces, special, files):
        self.family: str = family
        self.special: dict[str, int] = special
        self.files: dict[str, bytes] = files
        self.target: Vocabulary = self
        self._model = model
        self.vocab_size: int = max(model.ids.values()) + 1
        self._pieces = [""] * self.vocab_size
        for piece, number in model.ids.items():
            self._pieces[number] = piece
        self._hidden = {special[role] for role in HIDDEN & special.keys()}
        self._one, self._two = (FAMILIES[family].template(special, two) for two in (False, True))

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 of all that decides ids: where two are equal, the same text gives the same ids."""
        recipe = [self._model.recipe, self._one, self._two, sorted(self.special.items())]
        if self.target is not self:
            recipe.append(self.target.fingerprint)
        return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()

    def encode(self, lines: Sequence[str]) -> list[list[int]]:
        """Ids of every line, with nothing around them. Raises ValueError on surrogates."""
        try:
            return self._model.encode(lines)
        except (TypeError, UnicodeEncodeError):
            pieces.refuse_surrogates(lines)
            raise

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids, and of each piece the characters [begin, end) of `text` that it stands for.

        White space at either end of a piece is left out and accents that the model never sees
        are taken in, so that answers can be cut out of a text. Begins and ends never decrease;
        pieces of one character (bytes of an emoji) share it; a piece that stands for nothing
        but a word's start is empty.
        """
        try:
            ids, spans = self._model.spans(text)
        except (TypeError, UnicodeEncodeError):
            pieces.refuse_surrogates([text])
            raise
        return ids, _fitted(text, spans)

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Text of every row; pad, eos, bos, cls and sep vanish, the other special tokens show."""
        pieces.refuse_unknown(rows, self.vocab_size)
        return self._model.decode([[int(i) for i in row if i not in self._hidden] for row in rows])

    def tokens(self, ids: Iterable[int]) -> list[str]:
        """The pieces as the vocabulary spells them: ##ing, Ġthe, ▁the."""
        return [self._pieces[i] for i in ids]

    @functools.cached_property
    def starts_word(self) -> np.ndarray:
        """[V] bool: whether a piece begins a word; every special token does.

        Of byte-level BPE and SentencePiece, the first piece of a text begins one too, whether
        or not it says so. Raises ValueError for GPT-1, whose pieces do not tell.
        """
        starts = np.array([self._model.starts_word(piece) for piece in self._pieces])
        starts[[*self.special.values(), *self.sentinels]] = True
        return starts

    @functools.cached_property
    def sentinels(self) -> list[int]:
        """Ids of T5's <extra_id_0>, <extra_id_1>, ... as far as they go without a gap."""
        found = {piece: i for i, piece in enumerate(self._pieces) if piece.startswith("<extra_id_")}
        names = (f"<extra_id_{number}>" for number in range(len(found)))
        return [found[name] for name in itertools.takewhile(found.__contains__, names)]

    def pair(self, a: Sequence[int], b: Sequence[int] | None = None) -> tuple[list, list]:
        """(ids, segment types) of one text or two with the family's special tokens."""
        return around(self._one if b is None else self._two, a, b)

    @functools.cached_property
    def ends(self) -> Ends:
        """For an encoder-decoder. Raises ValueError of a family that has no decoder."""
        if not (begin := FAMILIES[self.family].begin):
            raise ValueError(f"tokenizer.kind={self.family}: of models without a decoder; try t5")
        ids = [what for what, _ in self._one]
        at = ids.index("a")
        return Ends(self.special[begin], tuple(ids[:at]), tuple(ids[at + 1 :]))

    # The other side of a translation reads the same vocabulary, but for Marian's.

    @property
    def kind(self) -> str:
        return self.family

    @property
    def source(self) -> "Vocabulary":
        return self

    @property
    def vocab_sizes(self) -> tuple[int, int]:
        return self.vocab_size, self.target.vocab_size

    def save(self, workdir: str | Path) -> None:
        """Writes the files, into a folder of their own, and last tokenizer.json, their list."""
        Path(workdir, FOLDER).mkdir(parents=True, exist_ok=True)
        sums = {}
        for name, content in self.files.items():
            output.write(Path(workdir, FOLDER, name), content)
            sums[f"{FOLDER}/{name}"] = hashlib.sha256(content).hexdigest()
        about = {"kind": self.family, "vocab": self.vocab_size, "special": self.special}
        output.write(Path(workdir, "tokenizer.json"), pieces.as_json(about | {"sha256": sums}))


def _fitted(text: str, spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans without white space around them, and with the marks that no other span has."""
    fitted, after = [], len(text)
    for begin, end in reversed(spans):
        while end < after and unicodedata.category(text[end])[0] == "M":
            end += 1
        inside, after = text[begin:end], begin
        if inside.strip():
            begin, end = end - len(inside.lstrip()), begin + len(inside.rstrip())
        fitted.append((begin, end))
    return fitted[::-1]


def of_folder(folder: str | Path) -> Vocabulary:
    """The tokenizer of a Hugging Face folder. Raises FileNotFoundError where there is none,
    ValueError where a file is damaged, unknown, or does not fit the model of config.json."""
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; name one that holds a tokenizer")
    names = {"config.json", *SETTINGS}.union(*LAYOUTS)
    paths = {name: Path(folder, name) for name in names}
    files = {name: _read(path) for name, path in paths.items() if path.is_file()}
    _layout(files, folder)
    config = parsed(files.get("config.json", b"{}"), paths["config.json"])
    settings = parsed(files.get("tokenizer_config.json", b"{}"), paths["tokenizer_config.json"])
    try:
        found = of_files(files, _family(config, settings, files, folder), str(folder))
        rows = config.get("vocab_size", found.vocab_size)
        fits = rows - found.vocab_size in {-found.vocab_size % each for each in ROUNDING}
    except (TypeError, AttributeError, KeyError) as error:
        raise ValueError(
            f"{folder}: a setting in its JSON files is of a wrong kind ({error}); fetch them again"
        ) from None
    if not fits:
        raise ValueError(
            f"{folder}: config.json says vocab_size={rows}, the tokenizer has {found.vocab_size} "
            "ids; put the tokenizer that the model was trained with beside it"
        )
    return found


def _family(config: dict, settings: dict, files: Iterable[str], folder) -> str:
    """Whose tokenizer it is, by the first of the files that says so."""
    kind, name = config.get("model_type", ""), settings.get("tokenizer_class") or ""
    classes = {family.replace("-", ""): family for family in FAMILIES}
    short = name.removesuffix("Fast").removesuffix("Tokenizer").lower()
    only = {"vocab.txt": "bert", "source.spm": "marian"}
    for found in (kind, classes.get(short), *(only.get(name) for name in files)):
        if found in FAMILIES:
            return found
    raise ValueError(
        f'{folder}: a tokenizer of model_type "{kind}" and tokenizer_class "{name}" is unknown; '
        f"name one of {', '.join(FAMILIES)} as model_type in config.json"
    )


def _layout(files: dict[str, bytes], where) -> tuple[str, ...]:
    found = next((names for names in LAYOUTS if files.keys() >= set(names)), None)
    if found is None:
        choices = ", ".join(" + ".join(names) for names in LAYOUTS)
        raise FileNotFoundError(f"{where} has no tokenizer; put one there, any of: {choices}")
    return found


def of_files(files: dict[str, bytes], family: str, where: str = "") -> Vocabulary:
    """The vocabulary of files that are at hand; as `of_folder`, which see."""
    layout = _layout(files, where)
    files = Files({n: files[n] for n in (*layout, *SETTINGS) if n in files}, family, where)
    found = _vocabulary(LAYOUTS[layout](files), files)
    if "target.spm" in layout:
        found.target = _vocabulary(marian(files, "target"), files)
    return found


def _vocabulary(model: Fast | SentencePieces, files: Files) -> Vocabulary:
    family = FAMILIES[files.family]
    for role in ROLES:
        if role in f"{family.one} {family.two}".split():
            files.need(role, model.ids, f"a text for {files.family}")
    special = {r: model.ids[files.names[r]] for r in ROLES if files.names.get(r) in model.ids}
    return Vocabulary(files.family, model, special, files.contents)


def learn(kind: str, vocab: int, lines: Iterable[str], *, lowercase: bool = False) -> Vocabulary:
    """A new vocabulary of training text; see `pieces.learn`."""
    return of_files(pieces.learn(kind, vocab, lines, lowercase=lowercase), kind)


def load(workdir: str | Path) -> Vocabulary:
    """The vocabulary that `save` put there. Raises ValueError where a file is not the one saved."""
    listing = Path(workdir, "tokenizer.json")
    if not listing.is_file():
        raise FileNotFoundError(f"{workdir} has no tokenizer.json; is it the workdir of a run?")
    try:
        about = json.loads(listing.read_bytes())
        kind, sums = about["kind"], dict(about["sha256"])
        names = [Path(name) for name in sums]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{listing} is damaged; copy it back from where it was made") from None
    if kind not in FAMILIES or {str(name.parent) for name in names} != {FOLDER}:
        raise ValueError(f"{workdir}: its tokenizer ({kind}) is that of a translation run")
    files = {name.name: checked(Path(workdir, name), sums[str(name)]) for name in names}
    return of_files(files, kind, str(Path(workdir, FOLDER)))


def checked(path: Path, saved: str) -> bytes:
    """The bytes at `path`, once their sha256 is the one that was saved with them."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing, though tokenizer.json names it; copy it back")
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != saved:
        raise ValueError(
            f"{path} is damaged or belongs to another run: its sha256 is {found[:12]}..., "
            f"tokenizer.json says {saved[:12]}...; copy the right file back"
        )
    return content


def _read(path: Path) -> bytes:
    content = path.read_bytes()
    if content.startswith(b"version https://git-lfs."):
        raise ValueError(f"{path}: a Git LFS pointer, not the data; fetch it (git lfs pull)")
    return content
