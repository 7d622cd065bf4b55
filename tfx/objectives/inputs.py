"""How one text, or two, become the one row that a model reads."""

from typing import NamedTuple

import numpy as np


class Special(NamedTuple):
    """The ids that a tokenizer keeps for itself; None: it has no such token."""

    pad: int | None = None
    bos: int | None = None
    eos: int | None = None
    unk: int | None = None
    cls: int | None = None
    sep: int | None = None
    mask: int | None = None

    @property
    def ids(self) -> list[int]:
        """All that there are, in order."""
        return sorted({*self} - {None})

    def get(self, name: str) -> int:
        """One of them. Raises ValueError where the tokenizer does not have it."""
        if (found := getattr(self, name)) is None:
            raise ValueError(f"the tokenizer has no {name} token, which this objective needs")
        return found


# One text and two: A, B and special tokens, each followed by its token type where a family has
# types. RoBERTa has one type for all, GPT-1 none.
FRAMES = {
    "bert": ("cls0 A0 sep0", "cls0 A0 sep0 B1 sep1"),
    "roberta": ("cls A sep", "cls A sep sep B sep"),
    "xlnet": ("A0 sep0 cls2", "A0 sep0 B1 sep1 cls2"),
    "gpt": ("bos A cls", "bos A sep B cls"),
}


def frame(family: str, special: Special, first, second=None) -> dict[str, np.ndarray]:
    """Ids of one text or two, as a family of models wants them.

    Args:
      family: one of `FRAMES`.

    Returns:
      1-D int32 arrays of one length: `ids`, `mask` (1: a token) and, of families that have token
      types, `types`. Nothing is cut off.

    Raises:
      ValueError: no such family, or a special token that the tokenizer does not have.
    """
    if family not in FRAMES:
        raise ValueError(f"no frame for '{family}': choose from {', '.join(FRAMES)}")
    texts, ids, types = {"A": first, "B": second}, [], []
    for part in FRAMES[family][second is not None].split():
        name = part.rstrip("012")
        ids.append(np.asarray(texts[name] if name in texts else [special.get(name)], np.int32))
        types += [part[len(name) :]] * len(ids[-1])
    ids = np.concatenate(ids)
    inputs = {"ids": ids, "mask": np.ones_like(ids)}
    return inputs | ({"types": np.array(types, np.int32)} if types[0] else {})
