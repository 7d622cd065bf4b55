"""How text becomes ids and ids become text again: SentencePiece, or plain bytes.

Every tokenizer has the same four special ids, pad=0, eos=1, unk=2 and bos=3; `encode` adds
none of them. A SentencePiece model is learned from the training text on first use (Sennrich
et al. 2016 for bpe, Kudo 2018 for unigram) and kept in the workdir with its sha256.

Characters too rare for the vocabulary become unk (data/pieces.py says which): there is no byte
fallback, whose 256 pieces would be half of a small vocabulary.
"""

import hashlib
import json
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import sentencepiece

from tfx.data import output, vocabulary
from tfx.data.families import FAMILIES, Ends
from tfx.data.pieces import as_json, evenly, refuse_surrogates, refuse_unknown, sentencepiece_model
from tfx.data.segment import THREADS, open_model
from tfx.data.vocabulary import checked

PAD, EOS, UNK, BOS = range(4)
SPECIAL = {"pad": PAD, "eos": EOS, "unk": UNK, "bos": BOS}
JOINT = ("tokenizer.model",)
PER_SIDE = ("tokenizer.source.model", "tokenizer.target.model")

# SentencePiece has one seed for the process; whoever draws holds the lock.
_drawing = threading.Lock()


class SentencePiece:
    """A SentencePiece model. `name` is what errors call it."""

    def __init__(self, model: bytes, name: str = "tokenizer.model"):
        self._processor = open_model(model, name)
        found = {key: getattr(self._processor, f"{key}_id")() for key in SPECIAL}
        if found != SPECIAL:
            raise ValueError(
                f"{name}: its special ids are {_ids(found)}, tfx needs {_ids(SPECIAL)}; train it "
                "with --pad_id=0 --eos_id=1 --unk_id=2 --bos_id=3, or leave tokenizer.path empty"
            )
        self.model = model
        self.vocab_size: int = self._processor.vocab_size()
        self.fingerprint = hashlib.sha256(model).hexdigest()

    def encode(self, lines: Sequence[str]) -> list[list[int]]:
        """Ids of every line, none of them special but unk. Raises ValueError on surrogates."""
        try:
            return self._processor.encode(list(lines), num_threads=THREADS)
        except TypeError:
            refuse_surrogates(lines)
            raise

    def encode_sampled(
        self, lines: Sequence[str], seeds: Sequence[int], alpha: float
    ) -> list[list[int]]:
        """One random segmentation a line, drawn with its own seed (below 2**32).

        bpe: merges are skipped with probability alpha (BPE-dropout, Provilkov et al. 2020);
        unigram: drawn from the lattice, scores times alpha (Kudo 2018). A line's draw depends
        on its seed alone, not on the lines or threads around it.
        """
        drawn = []
        with _drawing:
            for line, seed in zip(lines, seeds, strict=True):
                sentencepiece.set_random_generator_seed(int(seed))
                ids = self._processor.encode(line, enable_sampling=True, alpha=alpha, nbest_size=-1)
                drawn.append(ids)
        return drawn

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Text of every row; pad, eos and bos vanish, unk shows as ⁇."""
        if not len(rows):
            return []
        try:
            return self._processor.decode(
                [list(map(int, ids)) for ids in rows], num_threads=THREADS
            )
        except IndexError:
            refuse_unknown(rows, self.vocab_size)
            raise


class Bytes:
    """UTF-8 bytes, each the id byte + 4. Loses nothing; there is nothing to learn."""

    vocab_size = 256 + len(SPECIAL)
    fingerprint = hashlib.sha256(b"utf-8 bytes + 4").hexdigest()

    def encode(self, lines: Sequence[str]) -> list[list[int]]:
        """Ids of every line. Raises ValueError on surrogates."""
        try:
            return [[byte + len(SPECIAL) for byte in line.encode()] for line in lines]
        except UnicodeEncodeError:
            refuse_surrogates(lines)
            raise

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Text of every row without its special ids; broken UTF-8 shows as �."""
        refuse_unknown(rows, self.vocab_size)
        kept = (bytes(i - len(SPECIAL) for i in ids if i >= len(SPECIAL)) for ids in rows)
        return [line.decode("utf-8", errors="replace") for line in kept]


@dataclass(frozen=True)
class Tokenizer:
    """Both sides of a translation; `source` and `target` are one object when joint."""

    kind: str  # bpe | unigram | bytes | given (by path)
    source: SentencePiece | Bytes
    target: SentencePiece | Bytes
    ends = Ends(BOS, (), (EOS,))
    special = SPECIAL

    @property
    def fingerprint(self) -> str:
        """sha256 over both sides: equal exactly when the same text gives the same ids."""
        both = f"{self.source.fingerprint} {self.target.fingerprint}"
        return hashlib.sha256(both.encode()).hexdigest()

    @property
    def vocab_sizes(self) -> tuple[int, int]:
        return self.source.vocab_size, self.target.vocab_size

    def save(self, workdir: str | Path) -> None:
        """Writes the models and, last, tokenizer.json, each at once or not at all."""
        sums = {}
        if self.kind != "bytes":
            names = JOINT if self.source is self.target else PER_SIDE
            for name, side in zip(names, (self.source, self.target), strict=False):
                output.write(Path(workdir, name), side.model)
                sums[name] = side.fingerprint
        about = {"kind": self.kind, "vocab": self.vocab_sizes, "special": SPECIAL, "sha256": sums}
        output.write(Path(workdir, "tokenizer.json"), as_json(about))


def build(
    kind: str,
    vocab: int,
    chunks: Iterable[tuple[Sequence[str], Sequence[str]]],
    *,
    joint: bool = True,
    lowercase: bool = False,
    path: str = "",
    tags: Sequence[str] = (),
) -> Tokenizer:
    """The tokenizer that config.tokenizer asks for, learned from `chunks` where it must be.

    chunks: training text as (sources, targets), read only to learn, once; of more than
    SAMPLE pairs, evenly spread ones are used. tags: strings that stay whole pieces.
    """
    if lowercase and (path or kind == "bytes"):
        what = f'path="{path}": the model has its own' if path else "kind=bytes: bytes have no"
        raise ValueError(f"tokenizer.lowercase=True with tokenizer.{what} normalisation; set False")
    if path:
        if not joint:
            raise ValueError("tokenizer.path is one model for both sides; set tokenizer.joint=True")
        if not Path(path).is_file():
            raise FileNotFoundError(f'tokenizer.path="{path}": no such file')
        one = SentencePiece(Path(path).read_bytes(), path)
        return Tokenizer("given", one, one)
    if kind == "bytes":
        one = Bytes()
        return Tokenizer(kind, one, one)
    pairs = evenly(pair for chunk in chunks for pair in zip(*chunk, strict=True))
    sides = [[pair[0] for pair in pairs], [pair[1] for pair in pairs]]
    if joint:
        one = _learn(kind, vocab, sides[0] + sides[1], lowercase, tags)
        return Tokenizer(kind, one, one)
    return Tokenizer(kind, *(_learn(kind, vocab, side, lowercase, tags) for side in sides))


def load(workdir: str | Path) -> "Tokenizer | vocabulary.Vocabulary":
    """The tokenizer that `save`, or that of a Vocabulary, put there.

    Raises:
      FileNotFoundError, ValueError: there is none, or a file is not the one that was saved.
    """
    listing = Path(workdir, "tokenizer.json")
    if not listing.is_file():
        raise FileNotFoundError(f"{workdir} has no tokenizer.json; is it the workdir of a run?")
    try:
        about = json.loads(listing.read_bytes())
        kind, sums = about["kind"], tuple(about["sha256"].items())
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{listing} is damaged; copy it back from where it was made") from None
    if kind in FAMILIES and sums:
        return vocabulary.load(workdir)
    if kind == "bytes":
        one = Bytes()
        return Tokenizer(kind, one, one)
    if tuple(name for name, _ in sums) not in (JOINT, PER_SIDE):
        raise ValueError(f"{listing} is damaged; copy it back from where it was made")
    paths = [(Path(workdir, name), saved) for name, saved in sums]
    sides = [SentencePiece(checked(path, saved), str(path)) for path, saved in paths]
    return Tokenizer(kind, sides[0], sides[-1])


def _learn(kind, vocab, lines, lowercase, tags) -> SentencePiece:
    settings = {f"{name}_id": number for name, number in SPECIAL.items()}
    settings["user_defined_symbols"] = list(tags)
    return SentencePiece(sentencepiece_model(kind, vocab, lines, lowercase=lowercase, **settings))


def _ids(special: dict[str, int]) -> str:
    return " ".join(f"{name}={number}" for name, number in special.items())
