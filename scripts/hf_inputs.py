"""What are the reference models of Hugging Face fed? Drawn from one seed a folder; numpy only.

Sentences of falling lengths, padded on either side, with and without a mask; labels partly -100;
an answer that begins past the end of the text. hf_encoders.py, hf_decoders.py and hf_xlnet.py
say which models there are, with which config and cases; make_parity_fixtures.py runs them.
"""

import dataclasses
import zlib

import numpy as np

LOW = 6  # ids below it are special in some family


@dataclasses.dataclass(frozen=True)
class Size:
    width: int
    heads: int
    mlp: int
    depth: int
    vocab: int
    rows: int  # even: XLNet's bi_data halves the batch
    length: int
    seed: int
    lean: bool = False  # for the repository: whole for main models, the rest to the point


SIZES = {
    "tests": Size(16, 4, 20, 2, 59, 2, 9, 4, lean=True),
    "small": Size(32, 4, 56, 3, 101, 4, 14, 2),
    "odd": Size(40, 5, 36, 4, 83, 4, 11, 3),
}


@dataclasses.dataclass(frozen=True)
class Case:
    inputs: dict
    note: str = ""
    override: dict = dataclasses.field(default_factory=dict)  # of config.json
    extra: dict = dataclasses.field(default_factory=dict)  # to forward(), not arrays
    mems_of: str = ""  # the case whose memory this one continues


@dataclasses.dataclass(frozen=True)
class Reference:
    folder: str  # family/Class or family/Class_variant
    config: dict
    cases: dict
    note: str = ""
    main: bool = False  # gradients and AdamW steps of its first case
    probe: tuple = ()  # (scale, parameters to multiply) before the epsilon shows
    generate: dict = dataclasses.field(default_factory=dict)  # set -> (inputs, kwargs)
    file_config: dict = dataclasses.field(default_factory=dict)  # config.json as others write it
    file_lacks: tuple = ()  # keys that config.json has not

    @property
    def model(self):
        return self.folder.partition("/")[2].partition("_")[0]


class Draw:
    """Inputs of one folder."""

    def __init__(self, folder, size, pad=0, begin=None, end=None):
        self.random = np.random.default_rng([size.seed, zlib.crc32(folder.encode())])
        self.size, self.pad, self.begin, self.end = size, pad, begin, end

    def text(self, side="right", length=None, low=LOW, rows=None):
        """input_ids and attention_mask [B, T]; the first sentence is full, the last is short."""
        length, rows = length or self.size.length, rows or self.size.rows
        ids = np.full((rows, length), self.pad)
        for row, count in zip(ids, np.linspace(length, 3, rows).astype(int), strict=True):
            words = row[:count] if side == "right" else row[-count:]
            words[:] = self.random.integers(low, self.size.vocab - 1, count)
            words[0] = words[0] if self.begin is None else self.begin
            words[-1] = words[-1] if self.end is None else self.end
        return dict(input_ids=ids, attention_mask=(ids != self.pad).astype(np.int32))

    def types(self, text):
        """Two segments a sentence, cut where it likes."""
        mask = text["attention_mask"]
        cut = self.random.integers(1, mask.shape[1], (*mask.shape[:-1], 1))
        return dict(token_type_ids=(mask.cumsum(-1) > cut) * mask)

    def some(self, text, share=0.4):
        """Labels [B, T]: the ids themselves here and there, else -100; never on padding."""
        chosen = (self.random.random(text["input_ids"].shape) < share) & (
            text["attention_mask"] > 0
        )
        chosen[..., :1] |= text["attention_mask"][..., :1] > 0
        return np.where(chosen, text["input_ids"], -100)

    def classes(self, count, *shape):
        return self.random.integers(0, count, shape or self.size.rows)

    def span(self):
        """Answers; the last one starts past the text, which forward() leaves out of the loss."""
        start = self.random.integers(0, self.size.length // 2, self.size.rows)
        end = start + self.random.integers(0, self.size.length // 2, self.size.rows)
        start[-1] = self.size.length + 3
        return dict(start_positions=start, end_positions=end)

    def choices(self, side="right", count=3):
        drawn = [self.text(side) for _ in range(count)]
        return {name: np.stack([one[name] for one in drawn], 1) for name in drawn[0]}


def positions(text):
    """Of each token among the tokens of its sentence; padding reads position 0 or the last one."""
    return dict(position_ids=np.maximum(text["attention_mask"].cumsum(-1) - 1, 0))
