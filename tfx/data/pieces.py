"""Which pieces does a text teach? WordPiece, byte-level BPE, SentencePiece, characters, bytes.

Every vocabulary is learned as the files its family is published in, so that data/vocabulary.py
reads it like a downloaded one, and so does any other program. The same text gives the same bytes.

Characters too rare for a vocabulary become unk. All are kept while they take at most a tenth of
the vocabulary; otherwise those that make up 99.95% of the text.
"""

import io
import itertools
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

import sentencepiece
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

SAMPLE = 500_000  # lines (or pairs) a vocabulary is learned from, at most
LINE_BYTES = 1 << 20  # the reader's cap on a line: no training line is skipped
SENTINELS = 100  # of T5
OFTEN = 2  # a piece that is seen once says nothing about the next text


def sentencepiece_model(
    kind: str, vocab: int, lines: Sequence[str], *, lowercase=False, beside=0, **settings
) -> bytes:
    """A SentencePiece model (bpe: Sennrich et al. 2016, unigram: Kudo 2018).

    `beside` of the vocab pieces are no part of the model. Raises ValueError where the text is
    too small or too large for it.
    """
    ids = [number for key, number in settings.items() if key.endswith("_id") and number >= 0]
    if vocab <= beside + len(ids) + len(settings.get("control_symbols", ())):
        raise ValueError(
            f"tokenizer.vocab={vocab} leaves no piece beside the special ones; try 8000"
        )
    alphabet = set().union(*lines)
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            model_type=kind,
            vocab_size=vocab - beside,
            character_coverage=1.0 if 10 * len(alphabet) <= vocab else 0.9995,
            normalization_rule_name="nmt_nfkc_cf" if lowercase else "nmt_nfkc",
            max_sentence_length=LINE_BYTES,
            num_threads=1,  # with more, the same text gives other bytes
            minloglevel=2,
            **settings,
        )
    except RuntimeError as error:
        refuse_surrogates(lines)
        raise ValueError(_why_not(str(error), kind, vocab, beside)) from None
    return model.getvalue()


def _why_not(error: str, kind: str, vocab: int, beside: int) -> str:
    """SentencePiece's reason for not training, with the config key to change."""
    if most := re.search(r"value <= (\d+)", error):
        return _too_large(vocab, kind, int(most[1]) + beside)
    if least := re.search(r"required_chars. \d+ vs (\d+)", error):
        return _too_small(vocab, int(least[1]) + beside)
    if re.search(r"sentences_.empty|all_chars_count", error):
        return _NO_TEXT
    return f"tokenizer.vocab={vocab}: SentencePiece cannot learn this ({error}); try another size"


_NO_TEXT = "no line of training text to learn a vocabulary from; check data.train"


def _too_large(vocab: int, kind: str, most: int) -> str:
    return (
        f"tokenizer.vocab={vocab} is more {kind} pieces than the training text has; "
        f"the largest possible value is {most}"
    )


def _too_small(vocab: int, least: int) -> str:
    return (
        f"tokenizer.vocab={vocab} does not hold the characters of the training text; "
        f"the smallest possible value is {least}"
    )


def _t5(vocab, lines, lowercase):
    ids = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    model = sentencepiece_model(
        "unigram", vocab, lines, lowercase=lowercase, beside=SENTINELS, **ids
    )
    return {"spiece.model": model} | _config("T5Tokenizer", extra_ids=SENTINELS)


def _xlnet(vocab, lines, lowercase):
    model = sentencepiece_model(
        "unigram",
        vocab,
        [without_accents(line, lowercase)[0] for line in lines],
        control_symbols=["<cls>", "<sep>", "<pad>", "<mask>", "<eod>", "<eop>"],
        **{"unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": -1},
    )
    return {"spiece.model": model} | _config("XLNetTokenizer", do_lower_case=lowercase)


_CHANGED = re.compile(r"``|''|[\t-\r\x1c-\x1f]|[^\x00-\x7f]+")


def without_accents(text: str, lowercase: bool = False) -> tuple[str, list[int]]:
    """Text as XLNet reads it, and of each of its characters the place in the original.

    Quotes of two characters become one, white space a space, letters lose their accents (NFKD).
    Yang et al. 2019, the authors' prepro_utils.preprocess_text.
    """
    parts, places, at = [], [], 0
    for found in _CHANGED.finditer(text):
        parts.append(text[at : found.start()])
        places.extend(range(at, found.start()))
        at = found.end()
        if found[0].isascii():
            parts.append('"' if found[0] in ("``", "''") else " ")
            places.append(found.start())
            continue
        for place, letter in enumerate(found[0], found.start()):
            plain = [
                c for c in unicodedata.normalize("NFKD", letter) if not unicodedata.combining(c)
            ]
            parts += " " if letter.isspace() else plain
            places += [place] * (1 if letter.isspace() else len(plain))
    parts.append(text[at:])
    places.extend(range(at, len(text)))
    plain = "".join(parts)
    return plain.lower() if lowercase else plain, places


def _bert(vocab, lines, lowercase):
    """Without an order of its own, the trainer numbers letters as its hash table lists them.

    So it runs twice: once for the letters alone, once with these in order.
    """
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    counts = Counter(itertools.chain.from_iterable(map(normalizer.normalize_str, lines)))
    kept = _frequent({c: n for c, n in counts.items() if not c.isspace()}, vocab)

    def train(size, first):
        learner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        learner.normalizer = normalizer
        learner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(
            vocab_size=size,
            min_frequency=OFTEN,
            special_tokens=first,
            initial_alphabet=kept,
            limit_alphabet=len(kept),
            show_progress=False,
        )
        learner.train_from_iterator(lines, trainer, len(lines))
        ids = learner.get_vocab()
        return sorted(ids, key=ids.get)

    letters = sorted(train(0, []))
    pieces = train(vocab, special + letters)
    _check_size(vocab, "WordPiece", len(special + letters), len(pieces))
    text = "".join(f"{piece}\n" for piece in pieces)
    return {"vocab.txt": text.encode()} | _config("BertTokenizer", do_lower_case=lowercase)


def _frequent(counts: dict[str, int], vocab: int) -> list[str]:
    """The characters to keep, as this file's first lines say."""
    if not counts:
        raise ValueError(_NO_TEXT)
    ranked = sorted(counts, key=lambda c: (-counts[c], c))
    if 10 * len(ranked) <= vocab:
        return ranked
    before = itertools.accumulate(counts[c] for c in ranked[:-1])
    most = 0.9995 * sum(counts.values())
    return ranked[: 1 + sum(count < most for count in before)]


def _check_size(vocab: int, kind: str, least: int, most: int) -> None:
    if vocab < least:
        raise ValueError(_too_small(vocab, least))
    if most < vocab:
        raise ValueError(_too_large(vocab, kind, most))


def _byte_bpe(vocab, lines, special):
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        min_frequency=OFTEN,
        special_tokens=special,
        initial_alphabet=list(BYTES),
        show_progress=False,
    )
    learner.train_from_iterator(lines, trainer, len(lines))
    learned = json.loads(learner.to_str())["model"]
    _check_size(vocab, "byte-level", len(special) + 256, len(learned["vocab"]))
    merges = ["#version: 0.2", *(f"{left} {right}" for left, right in learned["merges"])]
    return {
        "vocab.json": as_json(learned["vocab"]),
        "merges.txt": "".join(f"{line}\n" for line in merges).encode(),
    }


def _gpt2(vocab, lines, lowercase):
    return _byte_bpe(vocab, lines, ["<|endoftext|>"]) | _config("GPT2Tokenizer")


def _roberta(vocab, lines, lowercase):
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    return _byte_bpe(vocab, lines, special) | _config("RobertaTokenizer")


def _letters_of_bytes() -> str:
    """The printable letter that byte-level vocabularies write for each byte (GPT-2's table)."""
    shown = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = itertools.count(0x100)
    return "".join(chr(byte if byte in shown else next(others)) for byte in range(256))


BYTES = _letters_of_bytes()
OWN = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "bos_token": "<s>"}


def _bytes(vocab, lines, lowercase):
    """Byte-level BPE without a merge: each byte is the id byte + 4."""
    ids = {piece: number for number, piece in enumerate([*OWN.values(), *BYTES])}
    tokenizer = Tokenizer(models.BPE(ids, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _own(tokenizer)


def _chars(vocab, lines, lowercase):
    """Every character of the text, and the line's end, which no line holds."""
    pieces = [*OWN.values(), *sorted(set("\n").union(*lines))]
    ids = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return _own(tokenizer)


def _own(tokenizer: Tokenizer) -> dict[str, bytes]:
    return {"tokenizer.json": tokenizer.to_str().encode()} | _config(
        "PreTrainedTokenizerFast", **OWN
    )


def _config(name: str, **settings) -> dict[str, bytes]:
    return {"tokenizer_config.json": as_json({"tokenizer_class": name} | settings)}


def as_json(value) -> bytes:
    return json.dumps(value, ensure_ascii=False, indent=2).encode() + b"\n"


LEARN = {
    "bert": _bert,
    "roberta": _roberta,
    "gpt2": _gpt2,
    "t5": _t5,
    "xlnet": _xlnet,
    "chars": _chars,
    "bytes": _bytes,
}
KEEP_CASE = ("roberta", "gpt2", "chars", "bytes")


def learn(kind: str, vocab: int, lines: Iterable[str], *, lowercase=False) -> dict[str, bytes]:
    """Tokenizer files by name, as the family `kind` keeps them.

    vocab: how many ids, special ones included; chars and bytes have as many as there are.
    lines: training text, read once; of more than SAMPLE lines, evenly spread ones are used.
    """
    if kind not in LEARN:
        raise ValueError(
            f"tokenizer.kind={kind} cannot be learned; choose one of {', '.join(LEARN)}"
        )
    if lowercase and kind in KEEP_CASE:
        raise ValueError(
            f"tokenizer.lowercase=True with tokenizer.kind={kind}: it keeps case; set False"
        )
    sample = [] if kind == "bytes" else evenly(lines)
    refuse_surrogates(sample)
    return LEARN[kind](vocab, sample, lowercase)


def evenly(items: Iterable) -> list:
    """Every k-th item, k the smallest power of two that leaves at most SAMPLE."""
    kept, stride = [], 1
    for number, item in enumerate(items):
        if number % stride == 0:
            kept.append(item)
        if len(kept) > SAMPLE:
            kept, stride = kept[::2], 2 * stride
    return kept


def refuse_surrogates(lines: Sequence[str]) -> None:
    for number, line in enumerate(lines, 1):
        if bad := re.search("[\ud800-\udfff]", line):
            code = f"U+{ord(bad[0]):04X}"
            raise ValueError(f"line {number} holds a lone surrogate ({code}), which is not text")


def refuse_unknown(rows: Sequence[Sequence[int]], vocab: int) -> None:
    for number in itertools.chain.from_iterable(rows):
        if not 0 <= number < vocab:
            raise ValueError(f"id {number} is not in the vocabulary of {vocab} (0..{vocab - 1})")
