"""The fingerprint states exact facts, reads every file once, and remembers what has not changed."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medplan.data import checks
from medplan.data.dataset import Dataset, open_dataset
from medplan.data.images import read_image, read_label, write_image
from medplan.data.labels import LabelSpace
from medplan.data.rawcase import RawCase
from medplan.errors import DataError
from medplan.plan import fingerprint as module
from medplan.plan.cache import Cache
from medplan.plan.fingerprint import Fingerprint, extract
from medplan.plan.statistics import Intensity, merge, summarise
from medplan.records import read_json, write_json
from tests.conftest import make_phantom, make_raw_dataset, write_nifti
from tests.data.test_dicom import write_series


def take(root: Path, *, workers: int = 2) -> Fingerprint:
    return extract(open_dataset(root), cache=root.parent / "cache.jsonl", workers=workers)


def describe(root: Path, **changes: object) -> None:
    data = json.loads((root / "dataset.json").read_text()) | changes
    (root / "dataset.json").write_text(json.dumps(data))


@pytest.mark.parametrize("degrees", [10, 45])
def test_facts_say_whether_thick_slices_are_oblique(raw_dataset: Path, degrees: int) -> None:
    turn = np.deg2rad(degrees)
    affine = np.eye(4)
    affine[:3, :3] = np.array(
        [[np.cos(turn), 0, np.sin(turn)], [0, 1, 0], [-np.sin(turn), 0, np.cos(turn)]]
    ) @ np.diag([1.5, 1.5, 8.0])
    for part in ("imagesTr/case00_0000.nii.gz", "labelsTr/case00.nii.gz"):
        stored = nibabel.load(raw_dataset / part)
        nibabel.save(nibabel.Nifti1Image(np.asarray(stored.dataobj), affine), raw_dataset / part)
    assert take(raw_dataset).cases[0].is_oblique == (degrees == 45)


def test_facts_of_a_case_equal_those_measured_by_hand(raw_dataset: Path) -> None:
    facts = take(raw_dataset).cases[0]
    image = read_image([raw_dataset / "imagesTr" / "case00_0000.nii.gz"]).array[0]
    label, geometry = read_label(raw_dataset / "labelsTr" / "case00.nii.gz")
    affine = nibabel.load(raw_dataset / "imagesTr" / "case00_0000.nii.gz").affine
    assert facts.id == "case00" and facts.shape == image.shape and facts.is_labelled
    assert facts.spacing_mm == geometry.spacing_mm == (3.0, 1.5, 1.5)
    assert facts.orientation == "".join(nibabel.aff2axcodes(affine))
    where = np.argwhere(image != 0)
    assert facts.nonzero_box == (tuple(where.min(0)), tuple(where.max(0) + 1))
    assert set(facts.classes) == {"liver", "spleen"}
    for value, name in ((1, "liver"), (2, "spleen")):
        where = np.argwhere(label == value)
        size = where.max(0) + 1 - where.min(0)
        assert facts.classes[name].voxels == len(where)
        assert facts.classes[name].size_voxels == tuple(size)
        assert facts.classes[name].size_mm == tuple(size * (3.0, 1.5, 1.5))
    for found, values in (
        (facts.nonzero[0], image[image != 0]),
        ((facts.foreground or ())[0], image[label > 0]),
    ):
        compare(found, values)


def compare(found: Intensity, values: np.ndarray, rel: float = 1e-6) -> None:
    values = values.astype(np.float64)
    expected = {
        "mean": values.mean(),
        "std": values.std(),
        "median": np.median(values),
        "min": values.min(),
        "max": values.max(),
        "p00_5": np.percentile(values, 0.5),
        "p99_5": np.percentile(values, 99.5),
    }
    for name, value in expected.items():
        assert getattr(found, name) == pytest.approx(value, rel=rel, abs=1e-9), name


def test_label_situation_and_medians_are_stated(raw_dataset: Path) -> None:
    describe(raw_dataset, domain={"case00": "siemens", "case01": "ge"}, patient={"case00": "p"})
    found = take(raw_dataset)
    assert (found.num_labelled, found.num_unlabelled) == (4, 2)
    assert found.domains == ("ge", "siemens") and found.cases[0].domain == "siemens"
    assert found.cases[0].patient == "p" and found.cases[1].patient is None
    assert found.median_spacing_mm == (3.0, 1.5, 1.5) and found.median_shape == (20, 28, 24)
    assert found.modalities == ("MR",) and found.modalities_from == ("channel name",)
    assert found.intensity_region == "foreground" and not found.is_picture and found.notes == ()
    assert "case06" not in {case.id for case in found.cases}


def test_fingerprints_survive_their_file(raw_dataset: Path, tmp_path: Path) -> None:
    found = take(raw_dataset)
    assert read_json(Fingerprint, write_json(found, tmp_path / "fingerprint.json")) == found


def test_pooled_statistics_weigh_every_case_the_same(raw_dataset: Path) -> None:
    pooled = []
    for number in range(4):
        phantom = make_phantom(number)
        pooled.append(phantom.image[phantom.label > 0])
    found = take(raw_dataset).intensities[0]
    even = np.concatenate([np.repeat(part, round(1e6 / len(part))) for part in pooled])
    assert found.mean == pytest.approx(np.mean([part.mean() for part in pooled]))
    assert found.std == pytest.approx(even.astype(np.float64).std(), rel=1e-3)
    assert found.median == pytest.approx(np.median(even), rel=1e-3)
    assert found.p00_5 == pytest.approx(np.percentile(even, 0.5), rel=0.01)
    assert found.p99_5 == pytest.approx(np.percentile(even, 99.5), rel=0.01)
    assert (found.min, found.max) == (min(part.min() for part in pooled), max(part.max() for part in pooled))


def test_a_large_case_does_not_outvote_a_small_one() -> None:
    small, large = summarise(np.arange(100)), summarise(np.arange(1000, 11_000))
    assert small is not None and large is not None
    found = merge([small, large])
    quarter, three_quarters = found.percentiles(25.0, 75.0)
    assert quarter == pytest.approx(50, abs=1) and three_quarters == pytest.approx(6000, abs=20)
    assert found.mean == pytest.approx((49.5 + 5999.5) / 2)


def test_without_labels_the_statistics_are_of_what_is_not_zero(tmp_path: Path) -> None:
    found = take(make_raw_dataset(tmp_path / "set", num_labelled=0, num_unlabelled=1))
    image = make_phantom(0).image
    assert found.intensity_region == "nonzero" and found.cases[0].foreground is None
    compare(found.intensities[0], image[image != 0])


@pytest.mark.parametrize("workers", [1, 3])
def test_a_second_run_gives_the_same_and_reads_nothing(
    raw_dataset: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    first = take(raw_dataset, workers=workers)
    monkeypatch.setattr(module, "inspect", lambda *_: pytest.fail("a file was read again"))
    assert take(raw_dataset) == first
    # A copy of the same files has other times; their digests tell that nothing changed.
    for path in raw_dataset.rglob("*.nii.gz"):
        os.utime(path, ns=(1, 1))
    assert take(raw_dataset) == first


def test_cases_of_any_name_are_remembered(raw_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in raw_dataset.rglob("case00*"):
        path.rename(path.with_name(path.name.replace("case00", 'M\u00fcller "2"')))
    first = take(raw_dataset)
    monkeypatch.setattr(module, "inspect", lambda *_: pytest.fail("a file was read again"))
    assert take(raw_dataset) == first


def test_images_may_be_dicom_folders(tmp_path: Path) -> None:
    root = make_raw_dataset(tmp_path / "set", num_labelled=0, num_unlabelled=1)
    write_series(tmp_path / "scan")
    describe(root, dataset={"a": {"images": [str(tmp_path / "scan")]}})
    assert take(root) == take(root)
    assert take(root).cases[0].shape == (4, 6, 5)


def test_only_what_changed_is_read_again(raw_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = take(raw_dataset)
    phantom = make_phantom(99)
    write_nifti(raw_dataset / "imagesTr" / "case01_0000.nii.gz", phantom.image, phantom.spacing_mm)
    read: list[str] = []
    real = checks.inspect

    def watched(case: RawCase, dataset: Dataset) -> object:
        read.append(case.id)
        return real(case, dataset)

    monkeypatch.setattr(module, "inspect", watched)
    second = take(raw_dataset)
    assert read == ["case01"]
    assert [a == b for a, b in zip(first.cases, second.cases, strict=True)] == [True, False] + [True] * 4
    describe(raw_dataset, labels={"background": 0, "hepar": 1, "spleen": 2})
    take(raw_dataset)
    assert len(read) == 7
    lines = (raw_dataset.parent / "cache.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == [f"case{n:02d}" for n in range(6)]


def test_every_file_is_read_once(raw_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    real = checks.read_stored

    def watched(path: Path, *, label: bool = False) -> object:
        read.append(path)
        return real(path, label=label)

    monkeypatch.setattr(checks, "read_stored", watched)
    take(raw_dataset)
    assert len(read) == len(set(read)) == 10


def test_an_interrupted_run_goes_on_where_it_was(raw_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = take(raw_dataset)
    cache = raw_dataset.parent / "cache.jsonl"
    lines = cache.read_text().splitlines(keepends=True)
    cache.write_text("".join(lines[:3]) + lines[3][:100])
    read: list[str] = []
    real = checks.inspect
    monkeypatch.setattr(
        module, "inspect", lambda case, dataset: (read.append(case.id), real(case, dataset))[1]
    )
    assert take(raw_dataset) == expected and read == ["case03", "case04", "case05"]


def test_never_more_cases_in_memory_than_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_raw_dataset(tmp_path / "set", num_labelled=12)
    lock, now, most = threading.Lock(), [0], [0]
    real_inspect, real_measure = checks.inspect, module.measure

    def enter(case: RawCase, dataset: Dataset) -> object:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        return real_inspect(case, dataset)

    def leave(*arguments: object) -> object:
        time.sleep(0.01)
        result = real_measure(*arguments)  # type: ignore[arg-type]
        with lock:
            now[0] -= 1
        return result

    monkeypatch.setattr(module, "inspect", enter)
    monkeypatch.setattr(module, "measure", leave)
    take(root, workers=3)
    assert 1 < most[0] <= 3


def test_thousands_of_unchanged_cases_take_seconds(tmp_path: Path) -> None:
    root = make_raw_dataset(tmp_path / "set", num_labelled=1)
    image, label = root / "imagesTr" / "case00_0000.nii.gz", root / "labelsTr" / "case00.nii.gz"
    fingerprint = take(root)
    line = (tmp_path / "cache.jsonl").read_text()
    for number in range(1, 2000):
        os.link(image, root / "imagesTr" / f"case{number:04d}x_0000.nii.gz")
        os.link(label, root / "labelsTr" / f"case{number:04d}x.nii.gz")
    copies = [line.replace("case00", f"case{number:04d}x") for number in range(1, 2000)]
    (tmp_path / "cache.jsonl").write_text(line + "".join(copies))
    start = time.process_time()
    found = take(root)
    assert time.process_time() - start < 5
    assert len(found.cases) == 2000
    assert found.intensities[0].mean == pytest.approx(fingerprint.intensities[0].mean)


def test_bad_cases_are_all_listed_at_once(raw_dataset: Path) -> None:
    for number in (1, 4):
        path = raw_dataset / "imagesTr" / f"case{number:02d}_0000.nii.gz"
        path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(DataError, match="2 errors") as caught:
        take(raw_dataset)
    assert "case 'case01'" in str(caught.value) and "case 'case04'" in str(caught.value)
    describe(raw_dataset, exclude=["case01", "case04"])
    assert len(take(raw_dataset).cases) == 4


def test_warnings_are_notes_and_not_forgotten(raw_dataset: Path) -> None:
    phantom, label = make_phantom(0), raw_dataset / "labelsTr" / "case00.nii.gz"
    write_nifti(label, phantom.label, phantom.spacing_mm, origin=(9.0, 0.0, 0.0))
    first = take(raw_dataset)
    assert len(first.notes) == 1 and "origin" in first.notes[0]
    assert take(raw_dataset).notes == first.notes


def test_a_scan_that_was_saved_without_its_spacing_is_named(raw_dataset: Path) -> None:
    case = next(case for case in open_dataset(raw_dataset).cases if not case.is_labelled)
    image = read_image(case.images)
    write_image(case.images[0], image.array, replace(image.geometry, spacing_mm=(1.0, 0.2, 0.2)))
    (note,) = take(raw_dataset).notes
    assert case.id in note and "without its spacing" in note


def test_regions_and_ignored_voxels_are_measured(raw_dataset: Path) -> None:
    path = raw_dataset / "labelsTr" / "case00.nii.gz"
    label, _ = read_label(path)
    label[:2] = 9
    write_nifti(path, label, (3.0, 1.5, 1.5))
    describe(
        raw_dataset,
        labels={"background": 0, "both": [1, 2], "spleen": [2], "ignore": 9},
        regions_class_order=[1, 2],
    )
    facts = take(raw_dataset).cases[0]
    where = np.argwhere((label == 1) | (label == 2))
    assert facts.classes["both"].voxels == len(where)
    assert facts.classes["both"].size_voxels == tuple(where.max(0) + 1 - where.min(0))
    assert facts.unannotated == pytest.approx(0.1)
    image = make_phantom(0).image
    compare((facts.foreground or ())[0], image[(label == 1) | (label == 2)])


def test_pictures_have_no_millimetres(tmp_path: Path, shared_data: Callable[[str], Path]) -> None:
    source = shared_data("kvasir_seg")
    names = sorted(path.stem for path in (source / "images").glob("*.jpg"))[:5]
    paths = {name: {"images": [str(source / "images" / f"{name}.jpg")]} for name in names}
    description = {
        "channel_names": {"0": "R", "1": "G", "2": "B"},
        "labels": {"background": 0, "polyp": 1},
        "file_ending": ".jpg",
        "dataset": paths,
    }
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    found = extract(open_dataset(tmp_path), cache=tmp_path / "cache.jsonl", workers=2)
    assert found.is_picture and found.median_spacing_mm is None and found.modalities == ("RGB",) * 3
    assert len(found.intensities) == 3 and found.cases[0].shape[0] == 1


def test_real_scans_give_the_statistics_of_all_their_voxels(
    tmp_path: Path, shared_data: Callable[[str], Path]
) -> None:
    folder = shared_data("chaos_mr_t2spir")
    paths = {
        str(n): {"images": [str(folder / f"image_{n}.nii.gz")], "label": str(folder / f"label_{n}.nii.gz")}
        for n in (1, 2)
    }
    description = {
        "channel_names": {"0": "unknown"},
        "labels": {"background": 0, "liver": 1, "right kidney": 2, "left kidney": 3, "spleen": 4},
        "file_ending": ".nii.gz",
        "dataset": paths,
    }
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    dataset = open_dataset(tmp_path)
    found = extract(dataset, cache=tmp_path / "cache.jsonl", workers=2)
    for case, facts in zip(dataset.cases, found.cases, strict=True):
        image, label = read_image(case.images).array[0], read_label(case.label or Path())[0]
        compare((facts.foreground or ())[0], image[label > 0])
        compare(facts.nonzero[0], image[image != 0])
    assert found.modalities_from == ("intensities (a guess)",)
    assert any("guessed" in note for note in found.notes)


KINDS = {
    "few integers": np.random.default_rng(0).integers(-20, 300, 50_000).astype(np.int16),
    "many integers": np.random.default_rng(1)
    .normal(0, 8000, 200_000)
    .round()
    .clip(-30000, 30000)
    .astype(np.int16),
    "integers as floats": np.random.default_rng(2).integers(-1000, 1000, 50_000).astype(np.float32),
    "floats": np.random.default_rng(3).lognormal(0, 1.5, 200_000).astype(np.float32),
    "one value": np.full(10, 3.5, np.float32),
}


@pytest.mark.parametrize("name", KINDS)
def test_statistics_of_one_array_are_exact(name: str) -> None:
    found = summarise(KINDS[name])
    assert found is not None and len(found.values) <= 1024
    compare(found.intensity(), KINDS[name], rel=1e-9)


@pytest.mark.parametrize("name", KINDS)
def test_merged_summaries_stay_close_to_the_pooled_percentiles(name: str) -> None:
    values = KINDS[name].astype(np.float64)
    parts = [part for part in (summarise(values[::2]), summarise(values[1::2])) if part is not None]
    found = merge(parts).intensity()
    assert found.mean == pytest.approx(values.mean()) and found.std == pytest.approx(values.std())
    # The error is one of rank: 0.1 % in the middle and 0.01 % at 0.5 and 99.5 %, plus one value of each part.
    slack = 2 / len(values)
    for share, error, value in (
        (0.5, 0.001, found.median),
        (0.005, 1e-4, found.p00_5),
        (0.995, 1e-4, found.p99_5),
    ):
        low, high = np.quantile(values, np.clip([share - error - slack, share + error + slack], 0, 1))
        assert low - 1e-9 <= value <= high + 1e-9


def test_caches_of_other_label_spaces_are_not_used(raw_dataset: Path) -> None:
    take(raw_dataset)
    dataset = open_dataset(raw_dataset)
    path = raw_dataset.parent / "cache.jsonl"
    assert Cache(path, channels=dataset.channels, labels=dataset.labels).get(dataset.cases[0]) is not None
    other = LabelSpace(names=("liver",), values=((1, 2),))
    assert Cache(path, channels=dataset.channels, labels=other).get(dataset.cases[0]) is None


def test_taking_a_fingerprint_needs_neither_torch_nor_scipy(raw_dataset: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from medplan.data.dataset import open_dataset\n"
        "from medplan.plan.fingerprint import extract\n"
        f"root = Path({str(raw_dataset)!r})\n"
        "extract(open_dataset(root), cache=root.parent / 'c.jsonl', workers=2)\n"
        "sys.exit(bool({'torch', 'scipy', 'nibabel'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
