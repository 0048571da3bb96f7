"""Bad input is found, told in one sentence with case and file, and repaired where that is no guess."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from medplan.data.boxes import body_box, body_threshold, nonzero_box, value_boxes, value_counts
from medplan.data.checks import Finding, check, differences
from medplan.data.dataset import open_dataset
from medplan.data.images import Geometry, read_image, read_label, write_image
from medplan.data.repairs import repair
from medplan.errors import DataError
from tests.conftest import make_raw_dataset, write_nifti

IMAGE, LABEL = "imagesTr/case00_0000.nii.gz", "labelsTr/case00.nii.gz"
Break = Callable[[Path], object]


def change(
    root: Path, name: str, edit: Callable[[np.ndarray, Geometry], tuple[np.ndarray, Geometry]]
) -> Path:
    image = read_image([root / name])
    array, geometry = edit(image.array[0], image.geometry)
    return write_image(root / name, array, geometry)


def with_geometry(**changes: object) -> Callable[[np.ndarray, Geometry], tuple[np.ndarray, Geometry]]:
    return lambda array, geometry: (array, Geometry(**(vars(geometry) | changes)))  # type: ignore[arg-type]


def with_value(value: float) -> Callable[[np.ndarray, Geometry], tuple[np.ndarray, Geometry]]:
    def edit(array: np.ndarray, geometry: Geometry) -> tuple[np.ndarray, Geometry]:
        array = array.copy()
        array[10, 14, 12] = value
        return array, geometry

    return edit


def shorten(root: Path, name: str) -> None:
    data = (root / name).read_bytes()
    (root / name).write_bytes(data[: len(data) // 2])


def with_frames(root: Path) -> None:
    image = read_image([root / IMAGE])
    write_image(root / IMAGE, np.concatenate([image.array, image.array]), image.geometry)


def cut(array: np.ndarray, geometry: Geometry) -> tuple[np.ndarray, Geometry]:
    return array[1:], Geometry(**(vars(geometry) | {"shape": array[1:].shape}))


TURNED = (0.0, 1.0, 0.0, -1.0, 0.0, 0.0, 0.0, 0.0, 1.0)
CASES: dict[str, tuple[Break, str, str, bool, bool]] = {
    # what is done: (how, file, part of the sentence, is an error, can be repaired)
    "missing channel": (
        lambda r: (r / IMAGE).rename(r / "imagesTr/case00_0001.nii.gz"),
        IMAGE,
        "no such file",
        True,
        False,
    ),
    "label of another shape": (lambda r: change(r, LABEL, cut), LABEL, "differ in shape", True, False),
    "label of another spacing": (
        lambda r: change(r, LABEL, with_geometry(spacing_mm=(3.0, 1.5, 1.6))),
        *(LABEL, "differ in spacing: (3, 1.5, 1.6) vs (3, 1.5, 1.5) mm", True, True),
    ),
    "label of another origin": (
        lambda r: change(r, LABEL, with_geometry(origin_mm=(5.0, 0.0, 0.0))),
        *(LABEL, "differ in origin", False, True),
    ),
    "label of another direction": (
        lambda r: change(r, LABEL, with_geometry(direction=TURNED)),
        *(LABEL, "differ in direction", False, True),
    ),
    "not a number": (
        lambda r: change(r, IMAGE, with_value(np.nan)),
        IMAGE,
        "1 of 13440 voxels are NaN",
        True,
        True,
    ),
    "infinite": (lambda r: change(r, IMAGE, with_value(np.inf)), IMAGE, "NaN or infinite", True, True),
    "nothing but NaN": (
        lambda r: change(r, IMAGE, lambda a, g: (np.full_like(a, np.nan), g)),
        *(IMAGE, "NaN or infinite", True, False),
    ),
    "undeclared label": (
        lambda r: change(r, LABEL, with_value(7)),
        *(LABEL, "does not declare: 7 (1 voxels); it knows [0, 1, 2]", True, False),
    ),
    "nearly integer label": (
        lambda r: change(r, LABEL, with_value(0.995)),
        LABEL,
        "integers, found 0.995",
        True,
        True,
    ),
    "half label": (lambda r: change(r, LABEL, with_value(0.5)), LABEL, "integers, found 0.5", True, False),
    "4-D image": (with_frames, IMAGE, "expected 1 channel, found 2 (frames of a 4-D file", True, False),
    "empty image": (
        lambda r: change(r, IMAGE, lambda a, g: (np.zeros_like(a), g)),
        *(IMAGE, "the image is empty: all voxels are 0", True, False),
    ),
    "truncated image": (lambda r: shorten(r, IMAGE), IMAGE, "damaged", True, False),
    "truncated label": (lambda r: shorten(r, LABEL), LABEL, "damaged", True, False),
    "no image at all": (lambda r: (r / IMAGE).write_bytes(b"text"), IMAGE, "not a NIfTI file", True, False),
    "label without a class": (
        lambda r: change(r, LABEL, lambda a, g: (np.zeros_like(a), g)),
        *(LABEL, "holds no class", False, False),
    ),
}


def broken(root: Path, name: str) -> tuple[Finding, ...]:
    CASES[name][0](root)
    return check(open_dataset(root), workers=2)


def test_sound_datasets_give_no_finding(raw_dataset: Path) -> None:
    assert check(open_dataset(raw_dataset)) == ()


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_told_in_one_sentence_naming_case_and_file(raw_dataset: Path, name: str) -> None:
    _, file, words, is_error, can_repair = CASES[name]
    findings = [finding for finding in broken(raw_dataset, name) if finding.file == raw_dataset / file]
    assert len(findings) == 1, findings
    (finding,) = findings
    assert finding.case == "case00" and "case 'case00'" in finding.sentence and file in finding.sentence
    assert words in finding.sentence and "\n" not in finding.sentence
    assert (finding.is_error, finding.can_repair) == (is_error, can_repair)


@pytest.mark.parametrize("name", CASES)
def test_repaired_copies_are_sound_and_the_source_is_untouched(
    raw_dataset: Path, tmp_path: Path, name: str
) -> None:
    findings = broken(raw_dataset, name)
    before = {path: path.read_bytes() for path in raw_dataset.rglob("*") if path.is_file()}
    left = repair(open_dataset(raw_dataset), tmp_path / "copy")
    assert {path: path.read_bytes() for path in raw_dataset.rglob("*") if path.is_file()} == before
    assert set(left) == {finding for finding in findings if not finding.can_repair}
    copy = open_dataset(tmp_path / "copy")
    assert not [finding for finding in check(copy) if finding.is_error]
    is_kept = not any(finding.is_error and not finding.can_repair for finding in findings)
    assert ("case00" in {case.id for case in copy.cases}) == is_kept
    assert len(copy.cases) == 5 + is_kept and len(copy.test_cases) == 1


def test_repair_takes_the_nearest_finite_intensity(raw_dataset: Path, tmp_path: Path) -> None:
    before = read_image([raw_dataset / IMAGE]).array[0]
    change(raw_dataset, IMAGE, with_value(-np.inf))
    repair(open_dataset(raw_dataset), tmp_path / "copy")
    after = read_image([tmp_path / "copy" / IMAGE]).array[0]
    changed = after != before
    assert changed.sum() == 1 and after[10, 14, 12] in before[9:12, 13:16, 11:14]


def test_repair_takes_the_grid_of_the_image_and_keeps_the_values(raw_dataset: Path, tmp_path: Path) -> None:
    before, _ = read_label(raw_dataset / LABEL)
    change(raw_dataset, LABEL, with_geometry(spacing_mm=(1.0, 1.0, 1.0), origin_mm=(9.0, 9.0, 9.0)))
    assert repair(open_dataset(raw_dataset), tmp_path / "copy") == ()
    after, geometry = read_label(tmp_path / "copy" / LABEL)
    assert np.array_equal(after, before)
    assert differences(geometry, read_image([raw_dataset / IMAGE]).geometry) == {}


def test_repair_never_writes_over_or_into_the_source(raw_dataset: Path, tmp_path: Path) -> None:
    dataset = open_dataset(raw_dataset)
    for target in (raw_dataset, raw_dataset / "new"):
        with pytest.raises(DataError, match="outside the dataset"):
            repair(dataset, target)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(DataError, match="new or empty"):
        repair(dataset, tmp_path / "full")


def test_a_copy_can_be_opened_when_a_case_of_a_published_split_is_left_out(
    raw_dataset: Path, tmp_path: Path
) -> None:
    data = json.loads((raw_dataset / "dataset.json").read_text())
    data["splits"] = {"paper": {"labelled": ["case00", "case01"], "validation": ["case02"]}}
    (raw_dataset / "dataset.json").write_text(json.dumps(data))
    shorten(raw_dataset, IMAGE)
    assert [finding.case for finding in repair(open_dataset(raw_dataset), tmp_path / "copy")] == ["case00"]
    copy = open_dataset(tmp_path / "copy")
    assert copy.splits == {"paper": {"labelled": ("case01",), "validation": ("case02",)}}


def test_a_training_and_a_test_case_of_one_name_stay_two(raw_dataset: Path, tmp_path: Path) -> None:
    for part, ending in (("images", "_0000.nii.gz"), ("labels", ".nii.gz")):
        (test,) = (raw_dataset / f"{part}Ts").iterdir()
        test.rename(test.with_name(f"case00{ending}"))
    repair(open_dataset(raw_dataset), tmp_path / "copy")
    for name in (IMAGE, IMAGE.replace("Tr", "Ts")):
        assert (tmp_path / "copy" / name).read_bytes() == (raw_dataset / name).read_bytes()


def test_channels_that_lie_elsewhere_are_found_and_repaired(tmp_path: Path) -> None:
    root = make_raw_dataset(tmp_path / "set", num_labelled=1)
    data = json.loads((root / "dataset.json").read_text())
    data["channel_names"] = {"0": "T1", "1": "T2"}
    (root / "dataset.json").write_text(json.dumps(data))
    image = read_image([root / IMAGE])
    second = root / "imagesTr" / "case00_0001.nii.gz"
    write_image(second, image.array[0], Geometry(**(vars(image.geometry) | {"spacing_mm": (3.0, 2.0, 2.0)})))
    (finding,) = check(open_dataset(root))
    assert (
        finding.file == second and finding.is_error and finding.can_repair and "spacing" in finding.sentence
    )
    assert repair(open_dataset(root), tmp_path / "copy") == ()
    assert check(open_dataset(tmp_path / "copy")) == ()


def test_too_many_channels_are_found(raw_dataset: Path) -> None:
    image = read_image([raw_dataset / IMAGE])
    write_image(raw_dataset / "imagesTr" / "case00_0001.nii.gz", image.array[0], image.geometry)
    (finding,) = check(open_dataset(raw_dataset))
    assert "expected 1 channel, found 2" in finding.sentence


def test_labels_without_images_are_a_warning(raw_dataset: Path) -> None:
    (raw_dataset / "labelsTr" / "other.nii.gz").write_bytes((raw_dataset / LABEL).read_bytes())
    (finding,) = check(open_dataset(raw_dataset))
    assert not finding.is_error and "other.nii.gz" in finding.sentence


def test_colour_pictures_are_checked_by_their_channels(tmp_path: Path) -> None:
    for name, mode in (("a", "RGB"), ("b", "L")):
        for part, file in (("imagesTr", f"{name}_0000.png"), ("labelsTr", f"{name}.png")):
            (tmp_path / part).mkdir(exist_ok=True)
            kind = mode if part == "imagesTr" else "L"
            picture = np.random.default_rng(0).integers(0, 2, (8, 9, 3), dtype=np.uint8)
            Pillow.fromarray(picture if kind == "RGB" else picture[..., 0]).save(tmp_path / part / file)
    description = {
        "channel_names": {"0": "x"},
        "labels": {"background": 0, "polyp": 1},
        "file_ending": ".png",
    }
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    (finding,) = check(open_dataset(tmp_path))
    assert finding.case == "a" and "expected 1 channel, found 3" in finding.sentence


def test_tolerances_let_rounding_pass_and_nothing_else() -> None:
    one = Geometry(shape=(4, 5, 6), spacing_mm=(3.0, 0.7, 0.7), origin_mm=(-200.0, 100.0, 50.0))
    assert differences(one, with_geometry(origin_mm=(-200.0005, 100.0, 50.0))(np.zeros(1), one)[1]) == {}
    assert differences(one, with_geometry(spacing_mm=(3.0, 0.7000001, 0.7))(np.zeros(1), one)[1]) == {}
    assert set(differences(one, with_geometry(spacing_mm=(3.0, 0.702, 0.7))(np.zeros(1), one)[1])) == {
        "spacing"
    }
    assert set(differences(one, with_geometry(origin_mm=(-200.1, 100.0, 50.0))(np.zeros(1), one)[1])) == {
        "origin"
    }


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.int32])
def test_boxes_and_counts_equal_the_naive_ones(kind: type) -> None:
    rng = np.random.default_rng(3)
    label = np.zeros((20, 30, 40), kind)
    large = {np.uint8: 200, np.int16: 600, np.int32: 10**6}[kind]
    for value in (1, 5, large, 3 if kind is np.uint8 else -2):
        start = rng.integers(2, 10, 3)
        label[tuple(slice(s, s + n) for s, n in zip(start, rng.integers(1, 9, 3), strict=True))] = value
    values, numbers = np.unique(label, return_counts=True)
    assert value_counts(label) == dict(zip(values.tolist(), numbers.tolist(), strict=True))
    boxes = value_boxes(label)
    assert set(boxes) == set(values.tolist()) - {0}
    for value, (lower, upper) in boxes.items():
        where = np.argwhere(label == value)
        assert lower == tuple(where.min(0)) and upper == tuple(where.max(0) + 1)


def test_boxes_of_empty_volumes_are_none_and_of_full_ones_the_whole_grid() -> None:
    assert nonzero_box(np.zeros((3, 4, 5))) is None
    assert nonzero_box(np.ones((3, 4, 5))) == ((0, 0, 0), (3, 4, 5))
    first, second = np.zeros((2, 3, 4, 5))
    first[1, 2, 3], second[0, 2, 4] = np.nan, -1
    assert nonzero_box(first, second) == ((0, 2, 3), (2, 3, 5))
    assert value_counts(np.zeros((2, 3, 4), np.uint8)) == {0: 24}
    assert value_boxes(np.zeros((2, 3, 4), np.uint8)) == {}


@settings(max_examples=40, deadline=None)
@given(st.tuples(*[st.integers(1, 9)] * 3), st.integers(0, 10**6))
def test_boxes_of_values_are_the_smallest(shape: tuple[int, int, int], seed: int) -> None:
    label = np.random.default_rng(seed).choice([0, 0, 0, -1, 1, 5], shape).astype(np.int16)
    expected = {}
    for value in np.unique(label[label != 0]):
        where = np.argwhere(label == value)
        expected[int(value)] = (tuple(where.min(0).tolist()), tuple((where.max(0) + 1).tolist()))
    assert value_boxes(label) == expected


@pytest.mark.parametrize(("air", "tissue"), [(0.0, 100.0), (-1000.0, 40.0), (-1.0, 2.0)])
def test_the_body_box_leaves_out_air_and_specks(air: float, tissue: float) -> None:
    rng = np.random.default_rng(0)
    array = np.full((1, 40, 50, 60), air) + rng.normal(0, 0.02 * (tissue - air), (1, 40, 50, 60))
    array[:, 5:35, 10:45, 8:50] += tissue - air
    array[:, 1, 1, 1] = 2 * tissue
    values, counts = np.unique(array, return_counts=True)
    assert body_box(array, (body_threshold(values, counts),)) == ((5, 10, 8), (35, 45, 50))


def test_undeclared_values_of_a_written_file_are_listed_shortly(tmp_path: Path) -> None:
    root = make_raw_dataset(tmp_path / "set", num_labelled=1)
    label, _ = read_label(root / LABEL)
    many = np.arange(label.size).reshape(label.shape) % 50
    write_nifti(root / LABEL, many.astype(np.int16), (3.0, 1.5, 1.5))
    (finding,) = check(open_dataset(root))
    assert "and 42 more" in finding.sentence
