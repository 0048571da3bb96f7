"""A channel's modality is told by its name or format, else guessed, and a CT without HU is noted."""

import pytest

from medplan.plan.modality import mismatch, modalities
from medplan.plan.statistics import Intensity


def statistics(low: float, high: float) -> Intensity:
    return Intensity(mean=0, std=1, median=0, min=low, max=high, p00_5=low, p99_5=high)


@pytest.mark.parametrize(
    ("name", "modality"),
    [
        ("CT", "CT"),
        ("T2-SPIR", "MR"),
        ("t1ce", "MR"),
        ("LGE MR", "MR"),
        ("cineMRI", "MR"),
        ("PET", "PET"),
        ("Red", "RGB"),
        ("us", "other"),
    ],
)
def test_names_tell_the_modality(name: str, modality: str) -> None:
    assert modalities([name], is_pictures=False, intensities=[[]]) == ((modality,), ("channel name",))


@pytest.mark.parametrize(
    ("low", "high", "modality"),
    [(-1024, 3000, "CT"), (0, 900, "MR"), (-3.2, 8.0, "other"), (-1000, 50, "other")],
)
def test_intensities_tell_the_modality_where_the_name_does_not(
    low: float, high: float, modality: str
) -> None:
    cases = [[statistics(low, high)] * 3]
    expected = ((modality,), ("intensities (a guess)",))
    assert modalities(["noNorm"], is_pictures=False, intensities=cases) == expected


def test_pictures_are_grey_or_colour_by_their_format() -> None:
    assert modalities(["x"], is_pictures=True, intensities=[[]]) == (("grey",), ("file format",))
    assert modalities(list("xyz"), is_pictures=True, intensities=[[]] * 3)[0] == ("RGB",) * 3


def test_a_ct_that_is_not_in_hounsfield_units_is_noted() -> None:
    assert mismatch("CT", [statistics(-1024, 2000)]) is None and mismatch("MR", [statistics(0, 255)]) is None
    assert "no Hounsfield units" in (mismatch("CT", [statistics(0, 255)]) or "")


@pytest.mark.parametrize("name", ["MR or CT", "CT or MR", "CT/PET"])
def test_a_name_of_several_modalities_is_none_of_them(name: str) -> None:
    found, _ = modalities([name], is_pictures=False, intensities=[[]])
    assert found == ("other",)
