"""How one text, or two, become the one row that a model reads."""

from typing import NamedTuple

import numpy as np

from tfx.data.families import FAMILIES, around


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
            raise ValueError(
                f"the tokenizer has no {name} token, which this objective needs; take another "
                "tokenizer.kind, tokenizer.path or init_from"
            )
        return found


def special(vocabulary) -> Special:
    """Those of a Vocabulary."""
    return Special(**vocabulary.special)


def frame(family: str, special: Special, first, second=None) -> dict[str, np.ndarray]:
    """Ids of one text or two, as a family of models wants them.

    Args:
      family: a key of `families.FAMILIES`.

    Returns:
      1-D int32 arrays of one length: `ids`, `mask` (1: a token) and, of families that have token
      types, `types`. Nothing is cut off.

    Raises:
      ValueError: no such family, or a special token that the tokenizer does not have.
    """
    if family not in FAMILIES:
        raise ValueError(f"no frame for '{family}': choose from {', '.join(FAMILIES)}")
    there = {role: number for role, number in special._asdict().items() if number is not None}
    template = FAMILIES[family].template(there, second is not None)
    ids, types = (np.array(x, np.int32) for x in around(template, first, second))
    inputs = {"ids": ids, "mask": np.ones_like(ids)}
    return inputs | ({"types": types} if FAMILIES[family].types else {})


def framed(vocabulary, first, second=None) -> dict[str, np.ndarray]:
    """The same, for the family of a Vocabulary."""
    return frame(vocabulary.family, special(vocabulary), first, second)


def axes(vocabulary, **more: str) -> dict[str, str]:
    """The axes of such a row, and of what is added to it."""
    names = ("ids", "mask") + ("types",) * FAMILIES[vocabulary.family].types
    return dict.fromkeys(names, "T") | more


def rows_of(vocabulary, rows, make):
    """What makes examples of the rows of `examples.texts`: each is framed, and goes with its value
    to make(row, rng, value)."""
    first, second, value = (rows.columns[name] for name in ("first", "second", "value"))

    def made(numbers, draw):
        found = []
        for n in numbers.tolist():
            other = second[n].astype(np.int32) if len(second[n]) else None
            row = framed(vocabulary, first[n].astype(np.int32), other)
            found.append(make(row, draw.rng(n), value[n][0]))
        return found

    return made
