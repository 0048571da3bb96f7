"""Labels: raw values to codes and back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medplan.data.labels import IGNORE, LabelSpace
from medplan.errors import DataError

EXCLUSIVE = LabelSpace(names=("a", "b", "c"), values=((205,), (-3,), (500, 600)), ignore=7)
REGIONS = LabelSpace(names=("whole", "core"), values=((1, 2, 3), (2, 3)), region_order=(1, 2))


def test_decoding_undoes_encoding_of_single_values() -> None:
    raw = np.array([[0, 205], [-3, 500]])
    assert (EXCLUSIVE.decode(EXCLUSIVE.encode(raw, where="x")) == raw).all()


def test_values_of_one_class_share_a_code() -> None:
    assert EXCLUSIVE.encode(np.array([500, 600]), where="x").tolist() == [3, 3]


def test_voxels_without_annotation_are_ignored() -> None:
    assert EXCLUSIVE.encode(np.array([7, 0]), where="x").tolist() == [IGNORE, 0]


@given(st.lists(st.sampled_from([0, 1, 2, 3]), min_size=1, max_size=50))
def test_regions_are_unions_of_codes(values: list[int]) -> None:
    raw = np.array(values)
    members = REGIONS.membership()[:, REGIONS.encode(raw, where="x")]
    assert (members[0] == (raw > 0)).all()
    assert (members[1] == (raw > 1)).all()


def test_later_regions_are_written_over_earlier_ones() -> None:
    assert REGIONS.decode(np.array([0, 1, 2])).tolist() == [0, 1, 2]
    assert REGIONS.num_outputs == 2 and EXCLUSIVE.num_outputs == 4


def test_undeclared_values_are_named_with_their_file() -> None:
    with pytest.raises(DataError, match=r"case1.nii.gz: label values \[9\] are not declared"):
        EXCLUSIVE.encode(np.array([0, 9]), where="case1.nii.gz")


def test_a_grouping_turns_other_values_into_background() -> None:
    space = LabelSpace(names=("a",), values=((2,),), others_are_background=True)
    assert space.encode(np.array([2, 99, -5]), where="x").tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("names", "values", "hint"),
    [
        (("a",), ((1,), (2,)), "1 class names but 2"),
        (("a", "a"), ((1,), (2,)), "same name"),
        (("a", "b"), ((1,), (1,)), "two classes"),
        (("a",), ((),), "at least one value"),
    ],
)
def test_contradictions_are_refused(
    names: tuple[str, ...], values: tuple[tuple[int, ...], ...], hint: str
) -> None:
    with pytest.raises(ValueError, match=hint):
        LabelSpace(names=names, values=values)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("liver", "spleen"), False),
        (("left kidney", "spleen"), True),
        (("Right-Thalamus",), True),
        (("left atrium",), True),
        (("lung_L", "heart"), True),
        (("LeftKidney",), True),
        (("kidneyRight",), True),
        (("leftKidney",), True),
        (("rib_left_1",), True),
        (("bright spot",), False),
        (("vertebra L1", "cleft", "Bright"), False),
    ],
)
def test_sides_are_read_from_the_names_of_classes(names: tuple[str, ...], expected: bool) -> None:
    space = LabelSpace(names=names, values=tuple((value,) for value in range(1, len(names) + 1)))
    assert space.tells_sides is expected
