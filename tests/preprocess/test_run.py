import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk

from medplan.data.dataset import open_dataset
from medplan.data.images import Geometry, Image
from medplan.errors import DataError
from medplan.plan.schema import Grid
from medplan.preprocess import run
from medplan.preprocess.geometry import Restoration
from medplan.preprocess.prepare import prepare
from medplan.preprocess.run import preprocess
from medplan.preprocess.storage import read_record
from medplan.records import decode
from medplan.samples.cases import open_case
from medplan.samples.histogram import quantiles
from tests.conftest import make_raw_dataset

GRID = Grid(spacing_mm=(2.0, 2.0, 2.0))

SCRIPT = """
import sys, time
from pathlib import Path
from medplan.data.dataset import open_dataset
from medplan.data.labels import LabelSpace
from medplan.plan.schema import DatasetPlan, Grid, Normalisation
from medplan.preprocess import storage
from medplan.preprocess.run import preprocess

write, delay = storage._write_volume, float(sys.argv[3])
storage._write_volume = lambda *arguments: (write(*arguments), time.sleep(delay))
plan = DatasetPlan(
    name="Phantom", channels=("T1",), modalities=("MR",), folds=({},),
    labels=LabelSpace(names=("liver", "spleen"), values=((1,), (2,))),
    normalisations=(Normalisation(scheme="zscore"),),
)
print("ready", flush=True)
preprocess(open_dataset(Path(sys.argv[1])), plan, Grid(spacing_mm=(2.0, 2.0, 2.0)), Path(sys.argv[2]),
workers=2)
"""


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def start(raw_dataset, folder, delay=0.0):
    command = [sys.executable, "-c", SCRIPT, str(raw_dataset), str(folder), str(delay)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"})


def test_the_number_of_workers_does_not_change_a_byte(raw_dataset, tmp_path, make_plan):
    for workers in (1, 3):
        preprocess(open_dataset(raw_dataset), make_plan(), GRID, tmp_path / str(workers), workers=workers)
    assert content(tmp_path / "1") == content(tmp_path / "3")


@pytest.mark.slow
def test_a_killed_run_done_again_gives_the_bytes_of_an_uninterrupted_one(raw_dataset, tmp_path):
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    with start(raw_dataset, whole) as process:
        assert process.wait() == 0
    with start(raw_dataset, folder, delay=0.3) as process:
        process.stdout.readline()
        deadline = time.monotonic() + 60
        while not list(folder.glob("*.image.b2nd")) and time.monotonic() < deadline:
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
    assert 0 < len(content(folder)) < len(content(whole))
    (folder / ".case00.image.b2nd.tmp").write_bytes(b"half")
    with start(raw_dataset, folder) as process:
        assert process.wait() == 0
    assert content(folder) == content(whole)


def test_done_cases_are_left_alone_until_their_files_or_the_plan_change(raw_dataset, tmp_path, make_plan):
    folder, dataset = tmp_path / "out", open_dataset(raw_dataset)
    preprocess(dataset, make_plan(), GRID, folder, workers=2)
    times = {path: path.stat().st_mtime_ns for path in folder.iterdir()}

    def changed():
        return {p.name.split(".")[0] for p in folder.iterdir() if p.stat().st_mtime_ns != times.get(p)}

    preprocess(dataset, make_plan(), GRID, folder, workers=2)
    assert changed() == set()
    source = raw_dataset / "labelsTr" / "case01.nii.gz"
    source.write_bytes((raw_dataset / "labelsTr" / "case02.nii.gz").read_bytes())
    (folder / "case03.image.b2nd").unlink()
    preprocess(dataset, make_plan(), GRID, folder, workers=2)
    assert changed() == {"case01", "case03"}
    preprocess(dataset, make_plan(scheme="unit"), GRID, folder, workers=2)
    assert changed() == {path.name.split(".")[0] for path in folder.iterdir()}


def test_a_case_clears_away_what_it_left_and_nothing_of_others(raw_dataset, tmp_path, make_plan):
    folder = tmp_path / "out"
    folder.mkdir()
    own = [
        ".case00.image.b2nd.tmp",
        ".case00.json.77.tmp",
        ".case00.extra-x-1.b2nd.tmp",
        "case00.extra-x-1.b2nd",
    ]
    others = [".case00.more.image.b2nd.tmp", ".case00.more.json.77.tmp", "case00.more.extra-x-1.b2nd"]
    for name in (*own, *others):
        (folder / name).touch()
    preprocess(open_dataset(raw_dataset), make_plan(), GRID, folder, workers=1)
    assert [name for name in (*own, *others) if (folder / name).exists()] == others


def test_a_test_case_never_takes_the_place_of_a_training_case(raw_dataset, tmp_path, make_plan):
    plan = replace(make_plan(), folds=({"labelled": ("case00",)},))
    preprocess(open_dataset(raw_dataset), plan, GRID, tmp_path / "before", workers=1)
    for part, ending in (("images", "_0000.nii.gz"), ("labels", ".nii.gz")):
        (test,) = (raw_dataset / f"{part}Ts").iterdir()
        test.rename(test.with_name(f"case00{ending}"))
    preprocess(open_dataset(raw_dataset), plan, GRID, tmp_path / "after", workers=1)
    assert content(tmp_path / "after") == content(tmp_path / "before")


def test_labels_outside_the_body_are_not_cut_away_without_a_word(make_plan, caplog):
    array = np.full((1, 20, 40, 60), -1000, np.float32)
    array[:, :, 10:30, 5:30] = 40
    label = np.zeros(array.shape[1:], np.uint8)
    label[3:6, 12:20, 8:20] = label[3, 12:14, 57] = 1
    image = Image(array=array, geometry=Geometry(shape=label.shape, spacing_mm=(2.0, 2.0, 2.0)))
    with caplog.at_level("WARNING"):
        prepare(image, replace(make_plan(), modalities=("CT",)), replace(GRID, crop="body"), label=label)
    assert "2 labelled voxels are cut away" in caplog.text


def test_voxels_that_lie_beside_their_header_are_noticed_when_they_change(tmp_path, make_plan):
    root = make_raw_dataset(tmp_path / "Phantom", num_labelled=1, ending=".mhd")
    header, folder = root / "imagesTr" / "case00_0000.mhd", tmp_path / "out"
    sitk.WriteImage(sitk.ReadImage(str(header)), str(header), False)
    preprocess(open_dataset(root), make_plan(), GRID, folder, workers=1)
    before = content(folder)["case00.image.b2nd"]
    voxels = header.with_suffix(".raw")
    voxels.write_bytes(np.roll(np.frombuffer(voxels.read_bytes(), np.float32), 5).tobytes())
    preprocess(open_dataset(root), make_plan(), GRID, folder, workers=1)
    assert content(folder)["case00.image.b2nd"] != before


def test_a_bad_case_is_reported_and_the_rest_goes_on(raw_dataset, tmp_path, make_plan):
    (raw_dataset / "imagesTr" / "case01_0000.nii.gz").write_bytes(b"not an image")
    smaller = raw_dataset / "labelsTr" / "case02.nii.gz"
    import SimpleITK as sitk

    sitk.WriteImage(sitk.ReadImage(str(smaller))[:, :, :-1], str(smaller))
    with pytest.raises(
        DataError, match=r"2 of 6 cases(.|\n)*case01: (.|\n)*case02: .*'Phantom/case02'.*shape"
    ):
        preprocess(open_dataset(raw_dataset), make_plan(), GRID, tmp_path / "out", workers=2)
    done = {path.name for path in (tmp_path / "out").glob("*.json")}
    assert done == {"case00.json", "case03.json", "case04.json", "case05.json"}


def test_an_unforeseen_failure_names_the_case(raw_dataset, tmp_path, make_plan, monkeypatch):
    def fail(*_, key, **__):
        raise MemoryError(f"no room for {key}")

    monkeypatch.setattr(run, "prepare", fail)
    with pytest.raises(DataError, match="case04: MemoryError: no room for Phantom/case04"):
        preprocess(open_dataset(raw_dataset), make_plan(), GRID, tmp_path / "out", workers=2)


def test_never_more_volumes_in_flight_than_workers(raw_dataset, tmp_path, make_plan, monkeypatch):
    lock, inside, most = threading.Lock(), [0], [0]
    original = run._case

    def counted(*arguments):
        with lock:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        original(*arguments)
        with lock:
            inside[0] -= 1

    monkeypatch.setattr(run, "_case", counted)
    preprocess(open_dataset(raw_dataset), make_plan(), GRID, tmp_path / "out", workers=2)
    assert most[0] <= 2


def test_the_histogram_of_a_stored_case_is_known_without_reading_it(raw_dataset, tmp_path, make_plan):
    preprocess(open_dataset(raw_dataset), make_plan(), GRID, tmp_path / "out", workers=2)
    case = open_case(tmp_path / "out", "Phantom/case00")
    assert case.quantiles is not None
    assert np.allclose(case.quantiles, quantiles(case.image()), atol=1e-6)


def test_the_record_of_a_case_holds_the_way_back(raw_dataset, tmp_path, make_plan):
    preprocess(open_dataset(raw_dataset), make_plan(), GRID, tmp_path / "out", workers=2)
    restoration = decode(Restoration, read_record(tmp_path / "out", "case00").restoration, where="record")
    assert restoration.native.shape == (20, 28, 24)
    assert np.load(tmp_path / "out" / "case00.locations.npy").dtype == np.uint16
    assert not (tmp_path / "out" / "case04.label.b2nd").exists()


def test_the_atlas_of_one_dataset_serves_the_others(raw_dataset, tmp_path, make_plan):
    grid = Grid(spacing_mm=(3.0, 3.0, 3.0), align_to="case00", crop="none")
    dataset = open_dataset(raw_dataset)
    atlas = preprocess(dataset, make_plan(), grid, tmp_path / "own", workers=1)
    assert atlas is not None and (tmp_path / "own" / "atlas.nrrd").is_file()
    assert preprocess(dataset, make_plan(), grid, tmp_path / "other", workers=1, atlas=atlas) is atlas
    assert not (tmp_path / "other" / "atlas.nrrd").exists()
    assert content(tmp_path / "other").items() <= content(tmp_path / "own").items()


def test_two_processes_that_prepare_the_same_cases_at_once_take_turns(raw_dataset, tmp_path):
    folder = tmp_path / "out"
    with start(raw_dataset, tmp_path / "alone") as process:
        assert process.wait() == 0
    with start(raw_dataset, folder, delay=0.05) as one, start(raw_dataset, folder, delay=0.05) as other:
        assert (one.wait(), other.wait()) == (0, 0)
    assert content(folder) == content(tmp_path / "alone")


def test_a_full_disk_is_named_as_such(raw_dataset, tmp_path, make_plan, monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("Error while creating the NDArray")

    monkeypatch.setattr("medplan.preprocess.storage.blosc2.asarray", refuse)
    with pytest.raises(DataError, match="MiB are free on its disk"):
        preprocess(open_dataset(raw_dataset), make_plan(), GRID, tmp_path / "out", workers=1)
