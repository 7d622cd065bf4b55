"""How texts are framed: the layouts of the papers, to the token."""

import numpy as np
import pytest

from tfx.data.families import FAMILIES
from tfx.objectives.inputs import Special, frame

SPECIAL = Special(pad=0, bos=1, eos=1, cls=2, sep=3)
A, B = [11, 12], [13]


@pytest.mark.parametrize(
    "family, one, two, types",
    [
        ("bert", [2, 11, 12, 3], [2, 11, 12, 3, 13, 3], [0, 0, 0, 0, 1, 1]),
        ("roberta", [2, 11, 12, 3], [2, 11, 12, 3, 3, 13, 3], None),
        ("xlnet", [11, 12, 3, 2], [11, 12, 3, 13, 3, 2], [0, 0, 0, 1, 1, 2]),
        ("gpt2", [11, 12], [11, 12, 1, 13], None),
    ],
)
def test_layouts(family, one, two, types):
    assert frame(family, SPECIAL, A)["ids"].tolist() == one
    row = frame(family, SPECIAL, A, B)
    assert row["ids"].tolist() == two and row["mask"].tolist() == [1] * len(two)
    assert (row["types"].tolist() if "types" in row else None) == types
    assert all(x.dtype == np.int32 for x in row.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_empty_texts_leave_the_frame(family):
    row = frame(family, SPECIAL, [], [])
    assert set(row["ids"].tolist()) <= {1, 2, 3}


def test_what_is_not_there_is_said():
    with pytest.raises(ValueError, match=r"'albert'.*bert, distilbert"):
        frame("albert", SPECIAL, A)
    with pytest.raises(ValueError, match="no cls token"):
        frame("bert", Special(sep=3), A)
    assert Special(pad=5, cls=2, bos=2).ids == [2, 5]
