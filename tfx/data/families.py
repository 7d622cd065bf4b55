"""What do the tokenizer files of each family say, and what do they leave unsaid?

Files become a model of `data/segment.py`, by which of them there are (LAYOUTS). Special tokens
are spelled as the files say, else as the family does; their ids are looked up, never assumed.
"""

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from sentencepiece import SentencePieceProcessor
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from tfx.data.pieces import SENTINELS
from tfx.data.segment import Fast, SentencePieces, open_model

ROLES = ("pad", "eos", "bos", "unk", "cls", "sep", "mask")


class Ends(NamedTuple):
    """What stands around the texts of an encoder-decoder: the id that decoding begins with, and
    the ids before and after each text; of a target, both are predicted."""

    begin: int
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()

    @property
    def around(self) -> tuple[int, ...]:
        return self.before + self.after


@dataclass(frozen=True)
class Family:
    """What a family's files leave unsaid.

    one, two: what goes around one text and two: roles, the texts a and b, each with its segment
    type behind a colon, or 0; a role behind ? goes there if the files have it. spelling: of the
    special tokens, where no file says it. begin: the role that decoding begins with, where there
    is a decoder.
    """

    one: str
    two: str
    spelling: str
    begin: str = ""

    def template(self, special: Mapping[str, int], two: bool) -> list[tuple[str | int, int]]:
        """[("a", 0), (102, 0), ...]: a text or a special id, and its segment type.

        Raises:
          ValueError: a special token that there is none of.
        """
        parts = []
        for part in (self.two if two else self.one).split():
            role, _, kind = part.removeprefix("?").partition(":")
            if role not in ("a", "b") and role not in special:
                if part.startswith("?"):
                    continue
                raise ValueError(f"the tokenizer has no {role} token, which goes around its texts")
            parts.append((special.get(role, role), int(kind or 0)))
        return parts

    @property
    def types(self) -> bool:
        """Whether a model of it tells one text from the other by token types."""
        return ":" in self.two


_BERT = Family(
    "cls a sep",
    "cls a sep b:1 sep:1",
    "pad=[PAD] unk=[UNK] cls=[CLS] sep=[SEP] mask=[MASK]",
)
_ROBERTA = Family(
    "cls a sep",
    "cls a sep sep b sep",
    "pad=<pad> eos=</s> bos=<s> unk=<unk> cls=<s> sep=</s> mask=<mask>",
    "eos",
)
_T5 = Family("a eos", "a eos b eos", "pad=<pad> eos=</s> unk=<unk>", "pad")
_XLNET = Family(
    "a sep cls:2",
    "a sep b:1 sep:1 cls:2",
    "pad=<pad> eos=</s> bos=<s> unk=<unk> cls=<cls> sep=<sep> mask=<mask>",
)
_END = "<|endoftext|>"
_OWN = Family("a", "a ?eos b", "pad=<pad> eos=</s> unk=<unk> bos=<s>")

FAMILIES = {  # by the model_type of config.json
    "bert": _BERT,
    "distilbert": _BERT,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "bart": _ROBERTA,
    "openai-gpt": Family("a", "a b", "unk=<unk>"),
    "gpt2": Family("a", "a ?eos b", f"eos={_END} bos={_END} unk={_END}"),
    "t5": _T5,
    "mt5": _T5,
    "xlnet": _XLNET,
    "marian": Family("a eos", "a b eos", "pad=<pad> eos=</s> unk=<unk>", "pad"),
    "chars": _OWN,
    "bytes": _OWN,
}


@dataclass(frozen=True)
class Files:
    """The files of one tokenizer, by name. `where` is the folder that errors name."""

    contents: dict[str, bytes]
    family: str
    where: str

    def json(self, name: str) -> dict:
        """What a file says; nothing where there is none."""
        return parsed(self.contents.get(name, b"{}"), self.path(name))

    def path(self, name: str) -> str:
        return str(Path(self.where, name))

    def lines(self, name: str) -> list[str]:
        try:
            text = self.contents[name].decode().replace("\r\n", "\n")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{self.path(name)}: not UTF-8 ({error.reason}); fetch it again"
            ) from None
        return text.removesuffix("\n").split("\n")

    def ids(self, name: str) -> dict[str, int]:
        ids = self.json(name)
        if not ids or not all(type(number) is int and number >= 0 for number in ids.values()):
            raise ValueError(f"{self.path(name)}: not pieces with their ids; fetch it again")
        return ids

    @functools.cached_property
    def settings(self) -> dict:
        return self.json("special_tokens_map.json") | self.json("tokenizer_config.json")

    @functools.cached_property
    def names(self) -> dict[str, str]:
        """How each role is spelled: as the files say, else as the family does."""
        names = dict(part.split("=") for part in FAMILIES[self.family].spelling.split())
        for role in ROLES:
            said = self.settings.get(f"{role}_token", names.get(role))
            names[role] = said["content"] if isinstance(said, dict) else said
        return {role: name for role, name in names.items() if name}

    @functools.cached_property
    def added(self) -> dict[str, dict]:
        """Tokens beside the vocabulary: their id and what they take of the space around them."""
        added = {name: {"id": number} for name, number in self.json("added_tokens.json").items()}
        for number, said in self.settings.get("added_tokens_decoder", {}).items():
            added[said["content"]] = {"id": int(number)} | {
                side: said.get(side, False) for side in ("lstrip", "rstrip")
            }
        return added

    def need(self, role: str, ids: dict[str, int], what: str) -> str:
        """The spelling of a role, which must be in the vocabulary."""
        name = self.names.get(role)
        if name not in ids:
            raise ValueError(
                f"{self.where}: the vocabulary has no {name or role}, which {what} needs; add it, "
                f"or name the right one as {role}_token in tokenizer_config.json"
            )
        return name


def _ready(files: Files) -> Fast:
    text = json.dumps(files.json("tokenizer.json"))
    try:
        return Fast(Tokenizer.from_str(text))
    except Exception as error:  # the library has no class of its own
        raise ValueError(
            f"{files.path('tokenizer.json')}: not one of the tokenizers library ({error}); "
            "fetch it again"
        ) from None


def _wordpiece(files: Files) -> Fast:
    ids = {piece: number for number, piece in enumerate(files.lines("vocab.txt"))}
    said = files.settings
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token=files.need("unk", ids, "WordPiece")))
    tokenizer.normalizer = normalizers.BertNormalizer(
        handle_chinese_chars=said.get("tokenize_chinese_chars", True),
        strip_accents=said.get("strip_accents"),
        lowercase=said.get("do_lower_case", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return _with_special(tokenizer, files)


def _bpe(files: Files) -> Fast:
    """GPT-1's, of lower-case words that end in </w>, or the byte-level one of GPT-2 and RoBERTa."""
    ids = files.ids("vocab.json")
    lines = [line for line in files.lines("merges.txt") if line and line[:9] != "#version:"]
    merges = [tuple(line.split(" ")) for line in lines]
    words = files.family == "openai-gpt"
    more = (
        {"end_of_word_suffix": "</w>", "unk_token": files.need("unk", ids, "GPT")} if words else {}
    )
    try:
        tokenizer = Tokenizer(models.BPE(ids, merges, **more))
    except Exception as error:  # the library has no class of its own
        raise ValueError(
            f"{files.path('merges.txt')}: does not fit vocab.json ({error}); fetch both again"
        ) from None
    if words:
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    else:
        space = files.settings.get("add_prefix_space", False)
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
        tokenizer.decoder = decoders.ByteLevel()
    return _with_special(tokenizer, files)


def _with_special(tokenizer: Tokenizer, files: Files) -> Fast:
    """Where a text spells one, it is found. RoBERTa's <mask> takes the space before it."""
    ids = tokenizer.get_vocab()
    eats_space = files.names.get("mask") if FAMILIES[files.family] is _ROBERTA else None
    tokens = {name: {"lstrip": name == eats_space} for name in files.names.values() if name in ids}
    tokens |= files.added
    for name in sorted(tokens, key=lambda name: tokens[name].get("id", -1)):
        expected = tokens[name].pop("id", ids.get(name))
        tokenizer.add_special_tokens([AddedToken(name, normalized=False, **tokens[name])])
        if tokenizer.token_to_id(name) != expected:
            raise ValueError(
                f"{files.where}: the added token {name} says id {expected}, the vocabulary leaves "
                f"it {tokenizer.token_to_id(name)}; take all its files from one place"
            )
    return Fast(tokenizer)


def _opened(files: Files, name: str) -> tuple[SentencePieceProcessor, list[str]]:
    """A SentencePiece model and its pieces in order."""
    processor = open_model(files.contents[name], files.path(name))
    try:
        return processor, [processor.id_to_piece(n) for n in range(processor.vocab_size())]
    except UnicodeDecodeError as error:
        raise ValueError(f"{files.path(name)}: damaged ({error.reason}); fetch it again") from None


def _spiece(files: Files) -> SentencePieces:
    """T5's, whose sentinels follow the model's pieces, the first one last; XLNet's."""
    processor, names = _opened(files, "spiece.model")
    size = len(names)
    ids = {name: number for number, name in enumerate(names)}
    special = {name for number, name in enumerate(names) if processor.is_control(number)}
    plain = None
    if files.family == "xlnet":
        plain = {"lowercase": files.settings.get("do_lower_case", False)}
    elif "<extra_id_0>" not in ids:
        count = files.settings.get("extra_ids", SENTINELS)
        ids |= {f"<extra_id_{count - 1 - n}>": size + n for n in range(count)}
    return _with_added(processor, ids, processor.unk_id(), special, files, plain)


def _fairseq(files: Files) -> SentencePieces:
    """XLM-R's: ids one above the model's, but for fairseq's own four; <mask> last."""
    processor, names = _opened(files, "sentencepiece.bpe.model")
    ids = {name: number + 1 for number, name in enumerate(names)}
    ids |= {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": len(names) + 1}
    return _with_added(processor, ids, ids["<unk>"], (), files)


def marian(files: Files, side: str = "source") -> SentencePieces:
    """A model a side; the ids of both are those of one file, or of a file a side."""
    processor, _ = _opened(files, f"{side}.spm")
    own = side == "target" and "target_vocab.json" in files.contents
    ids = files.ids("target_vocab.json" if own else "vocab.json")
    languages = {piece for piece in ids if piece.startswith(">>") and piece.endswith("<<")}
    unk = ids[files.need("unk", ids, "Marian")]
    return _with_added(processor, ids, unk, languages, files)


def _with_added(processor, ids, unk, special, files: Files, plain=None) -> SentencePieces:
    ids = ids | {name: said["id"] for name, said in files.added.items()}
    spelled = {name for name in files.names.values() if name in ids}
    sentinels = {piece for piece in ids if piece.startswith("<extra_id_")}
    return SentencePieces(
        processor, ids, unk, {*special, *spelled, *sentinels, *files.added}, plain
    )


LAYOUTS = {
    ("tokenizer.json",): _ready,
    ("vocab.txt",): _wordpiece,
    ("source.spm", "target.spm", "vocab.json"): marian,
    ("vocab.json", "merges.txt"): _bpe,
    ("spiece.model",): _spiece,
    ("sentencepiece.bpe.model",): _fairseq,
}
SETTINGS = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "target_vocab.json",
)


def around(template: list[tuple[str | int, int]], a, b=None) -> tuple[list, list]:
    """(ids, segment types) of one text or two in a `Family.template`."""
    ids, types, texts = [], [], {"a": a, "b": b}
    for what, kind in template:
        part = texts.get(what, [what])
        ids += list(part)
        types += [kind] * len(part)
    return ids, types


def parsed(content: bytes, path: str | Path) -> dict:
    """The object that a JSON file holds. Raises ValueError, naming the file."""
    try:
        value = json.loads(content)
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}); fetch it again") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: holds a {type(value).__name__}, not an object; fetch it again")
    return value
