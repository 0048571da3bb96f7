"""The demo's brains: different from each other, the same on every machine, and where the template lies."""

from pathlib import Path

import numpy as np
import pytest

from medplan.data.dataset import open_dataset
from medplan.data.images import read_image, read_label
from medplan.data.synthetic_brains import make_brains


@pytest.fixture(scope="module")
def brains(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("nilearn")
    return make_brains(
        tmp_path_factory.mktemp("raw") / "Brains", num_labelled=1, num_unlabelled=1, num_test=1
    )


def test_the_dataset_says_which_cases_are_labelled(brains: Path) -> None:
    dataset = open_dataset(brains)
    assert [case.label is not None for case in dataset.cases] == [True, False]
    assert [case.label is not None for case in dataset.test_cases] == [True]
    assert dataset.labels.names == ("grey matter", "white matter")


def test_tissues_have_their_contrast_and_a_plausible_volume(brains: Path) -> None:
    case = open_dataset(brains).cases[0]
    image = read_image(case.images)
    label, geometry = read_label(case.label)
    assert geometry == image.geometry and geometry.orientation == "RAS"
    grey, white = (float(image.array[0][label == value].mean()) for value in (1, 2))
    assert white > 1.2 * grey
    millilitres = [(label == value).sum() * 27 / 1000 for value in (1, 2)]
    assert 600 < millilitres[0] < 1400 and 350 < millilitres[1] < 1000


def test_brains_differ_and_come_again_from_the_same_seed(brains: Path, tmp_path: Path) -> None:
    again = make_brains(tmp_path / "Brains", num_labelled=1, num_unlabelled=0, num_test=0)
    files = sorted(path.relative_to(again) for path in again.rglob("*.nii.gz"))
    assert len(files) == 2
    assert all((brains / file).read_bytes() == (again / file).read_bytes() for file in files)
    first, second = (read_image([path]).array for path in sorted((brains / "imagesTr").iterdir()))
    assert first.shape != second.shape or not np.allclose(first, second)
