"""How is a text cut into pieces, and which of its characters is each piece?

Two libraries do it: `tokenizers` (WordPiece, BPE, whatever a tokenizer.json says) and
sentencepiece. Both classes here have the same five things: `ids` by piece, `recipe` (all that
decides ids, as JSON), encode, spans, decode, starts_word.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from itertools import groupby

import sentencepiece
from tokenizers import Tokenizer

from tfx.data.pieces import without_accents

THREADS = min(os.cpu_count() or 1, 16)
# How the pieces begin that begin a word: with its space, or as bytes do, a tab or an end of line.
MARKS = {"Unigram": "▁", "BPE": "▁ĠĉĊč", "WordLevel": " \t\n"}


class Fast:
    """A tokenizer of the `tokenizers` library."""

    def __init__(self, tokenizer: Tokenizer):
        tokenizer.no_padding()  # files keep what their last user set
        tokenizer.no_truncation()
        self._tokenizer = tokenizer
        self.ids: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
        whole = json.loads(tokenizer.to_str())
        self.recipe = {key: whole[key] for key in ("added_tokens", "normalizer", "pre_tokenizer")}
        # A setting may be left out, null or empty, and means the same.
        self.recipe["model"] = {key: value for key, value in whole["model"].items() if value}

    def encode(self, lines: Sequence[str]) -> list[list[int]]:
        found = self._tokenizer.encode_batch_fast(list(lines), add_special_tokens=False)
        return [line.ids for line in found]

    def spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        found = self._tokenizer.encode(text, add_special_tokens=False)
        return found.ids, found.offsets

    def decode(self, rows: list[list[int]]) -> list[str]:
        return self._tokenizer.decode_batch(rows, skip_special_tokens=False)

    def starts_word(self, piece: str) -> bool:
        model = self.recipe["model"]
        if model["type"] == "WordPiece":
            return not piece.startswith(model["continuing_subword_prefix"])
        if "end_of_word_suffix" in model:
            raise ValueError(
                "GPT's pieces say where a word ends, not where one starts; mask tokens instead"
            )
        return piece[:1] in MARKS[model["type"]]


class SentencePieces:
    """A SentencePiece model whose pieces may have ids of other files.

    Special tokens are cut out first, as the model itself knows no spelling of them. `plain`:
    settings of `without_accents`, where that is how the model reads (XLNet).
    """

    def __init__(
        self,
        processor: sentencepiece.SentencePieceProcessor,
        ids: dict[str, int],
        unk: int,
        special: Iterable[str],
        plain: dict | None = None,
    ):
        self._processor = processor
        self.ids, self._unk, self._plain = ids, unk, plain
        special = sorted(special, key=lambda token: (-len(token), token))
        self._special = re.compile("(" + "|".join(map(re.escape, special)) + ")")
        model = hashlib.sha256(processor.serialized_model_proto()).hexdigest()
        self.recipe = [model, ids, unk, special, plain]
        self._pieces = {number: piece for piece, number in ids.items()}

    def encode(self, lines: Sequence[str]) -> list[list[int]]:
        cut = [self._special.split(line) for line in lines]  # text, token, text, ..., text
        texts = [text for parts in cut for text in parts[::2]]
        if self._plain is not None:
            texts = [without_accents(text, **self._plain)[0] for text in texts]
        found = iter(self._processor.encode(texts, out_type=str, num_threads=THREADS))
        rows = []
        for parts in cut:
            rows.append([self.ids.get(piece, self._unk) for piece in next(found)])
            for token in parts[1::2]:
                rows[-1].append(self.ids[token])
                rows[-1] += [self.ids.get(piece, self._unk) for piece in next(found)]
        return rows

    def spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        ids, spans, at = [], [], 0
        for number, part in enumerate(self._special.split(text)):
            found = [(self.ids[part], 0, len(part))] if number % 2 else self._text_spans(part)
            ids += [i for i, _, _ in found]
            spans += [(at + begin, at + end) for _, begin, end in found]
            at += len(part)
        return ids, spans

    def _text_spans(self, text: str) -> list[tuple[int, int, int]]:
        read, places = text, range(len(text))
        if self._plain is not None:
            read, places = without_accents(text, **self._plain)
        # SentencePiece counts bytes; this is the original character that each belongs to.
        owners = [at for at, c in zip(places, read, strict=True) for _ in range(len(c.encode()))]
        owners.append(len(text))
        # Where a character becomes several pieces (½), the last of them is said to have it, and
        # one that begins a word to have the space: all get it from the piece behind. What then
        # has nothing is the start of the first word.
        found, (first, last) = [], (len(text), len(text))
        answer = self._processor.encode(read, return_type="proto").pieces
        for number, piece in reversed([*enumerate(answer)]):
            seen = piece.surface.strip()
            if not seen.isprintable():  # the model may read a control character as nothing
                seen = self._processor.normalize(seen).strip("▁")
            lacks = not seen and piece.piece != "▁"
            if piece.begin < piece.end:
                end = max(owners[piece.end - 1] + 1, owners[piece.end])
                first, last = owners[piece.begin], last if lacks else end
            elif number == 0 and not lacks:
                last = first
            found.append((self.ids.get(piece.piece, self._unk), first, last))
        return found[::-1]

    def decode(self, rows: list[list[int]]) -> list[str]:
        return [self._text([self._pieces.get(i, "") for i in row]) for row in rows]

    def _text(self, row: list[str]) -> str:
        texts = []
        is_special = lambda piece: bool(self._special.fullmatch(piece))
        for special, run in groupby(row, is_special):
            part = [*run]
            texts += part if special else [self._processor.decode(part)]
        return " ".join(text for text in map(str.strip, texts) if text)

    def starts_word(self, piece: str) -> bool:
        return piece.startswith("▁")


def open_model(model: bytes, name: str = "") -> sentencepiece.SentencePieceProcessor:
    try:
        # An empty model would load, and only complain on standard error.
        return sentencepiece.SentencePieceProcessor(model_proto=model or b"\0")
    except RuntimeError:
        raise ValueError(f"{name}: damaged, or not a SentencePiece model; fetch it again") from None
