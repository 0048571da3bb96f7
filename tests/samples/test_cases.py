import dataclasses
import multiprocessing
import pickle
import subprocess
import sys

import numpy as np
import pytest

from medplan.data.dataset import open_dataset
from medplan.data.labels import LabelSpace
from medplan.errors import DataError, MethodError, PlanError
from medplan.plan.schema import DatasetPlan, Grid, Normalisation, Plan, Training
from medplan.samples.cases import Case, CaseStore

GRID = Grid(spacing_mm=(2.0, 2.0, 2.0))
ROLES = {"labelled": ("case00", "case01"), "validation": ("case02",), "unlabelled": ("case04", "case05")}


def plan_of(roles=ROLES):
    dataset = DatasetPlan(
        name="Phantom",
        channels=("T1",),
        modalities=("MR",),
        labels=LabelSpace(names=("liver", "spleen"), values=((1,), (2,))),
        normalisations=(Normalisation(scheme="zscore"),),
        folds=(roles,),
        domains={"case00": "scanner A"},
    )
    training = Training(iterations=1, batch_size=1, lr=0.1)
    return Plan(
        name="Phantom",
        method="supervised",
        dims=3,
        datasets=(dataset,),
        grid=GRID,
        patch_size=(8, 8, 8),
        encoder="unet",
        training=training,
    )


@pytest.fixture
def folder(raw_dataset, tmp_path):
    from medplan.preprocess.run import preprocess

    preprocess(open_dataset(raw_dataset), plan_of().datasets[0], GRID, tmp_path / "cases", workers=1)
    return tmp_path / "cases"


@pytest.fixture
def store(folder):
    return CaseStore({"Phantom": folder}, plan_of())


def in_memory(shape=(2, 5, 6, 7)):
    pixels = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    codes = np.random.default_rng(1).integers(0, 3, shape[1:]).astype(np.int16)
    return Case(key="a/b", pixels=pixels, codes=codes)


@pytest.mark.parametrize(
    ("lower", "upper"),
    [
        ((0, 0, 0), (5, 6, 7)),
        ((1, 2, 3), (4, 5, 6)),
        ((-2, -3, 1), (9, 4, 5)),
        ((-9, 0, 0), (-2, 6, 7)),
        ((5, 0, 0), (8, 6, 7)),
    ],
)
def test_outside_the_case_there_is_nothing(lower, upper):
    case = in_memory()
    padded = np.pad(case.pixels, [(0, 0)] + [(10, 10)] * 3)
    where = tuple(slice(low + 10, high + 10) for low, high in zip(lower, upper, strict=True))
    assert np.array_equal(case.image(lower, upper), padded[:, *where])
    assert np.array_equal(case.label(lower, upper), np.pad(case.codes, 10)[where])


def test_changing_a_patch_leaves_the_case_alone():
    case = in_memory()
    before = case.pixels.copy()
    case.image()[...] = 0
    case.image((0, 0, 0), (5, 6, 7))[...] = 0
    assert np.array_equal(case.pixels, before)


def test_a_case_without_a_label_says_so():
    with pytest.raises(MethodError, match="'a/b'"):
        dataclasses.replace(in_memory(), codes=None).label()


def test_roles_and_keys(store):
    assert store.role("labelled") == ("Phantom/case00", "Phantom/case01")
    assert store.role("atlas") == ()
    assert len(store.all_keys()) == 5
    assert store.plan_of("Phantom/case04").name == "Phantom"


def test_what_was_prepared_is_read_back(store, raw_dataset):
    from medplan.data.images import read_image, read_label
    from medplan.preprocess.prepare import prepare

    raw = open_dataset(raw_dataset).case("case00")
    plan = store.plan_of("Phantom/case00")
    image, label = read_image(raw.images), read_label(raw.label)[0]
    expected, _ = prepare(image, plan, GRID, label=label, key="Phantom/case00")
    case = store["Phantom/case00"]
    assert case.domain == "scanner A"
    assert case.shape == expected.shape
    assert case.spacing_mm == expected.spacing_mm
    assert np.array_equal(case.image(), expected.pixels)
    assert np.array_equal(case.label(), expected.codes)
    assert np.array_equal(case.image((-1, 2, 3), (9, 40, 8)), expected.image((-1, 2, 3), (9, 40, 8)))
    assert set(case.locations) == set(expected.locations)
    for code, voxels in case.locations.items():
        assert np.array_equal(voxels, expected.locations[code])
    assert store["Phantom/case04"].codes is None


def test_missing_cases_are_one_sentence(store, folder):
    (folder / "case01.json").unlink()
    with pytest.raises(PlanError, match=r"'Phantom/case01' is not preprocessed.*medplan preprocess"):
        CaseStore({"Phantom": folder}, plan_of())
    with pytest.raises(PlanError, match="medplan preprocess"):
        CaseStore({"Phantom": folder}, plan_of({"labelled": tuple(f"x{i}" for i in range(9))}))
    with pytest.raises(PlanError, match="'Phantom'"):
        CaseStore({}, plan_of())
    with pytest.raises(PlanError, match="no case 'Other/x'"):
        store["Other/x"]


def test_a_file_that_is_gone_or_cut_short_is_one_sentence(store, folder):
    image = folder / "case01.image.b2nd"
    image.write_bytes(image.read_bytes()[:50])
    with pytest.raises(DataError, match=r"case01.image.b2nd: .* damaged .* Delete it"):
        store["Phantom/case01"]
    image.unlink()
    with pytest.raises(PlanError, match=r"'Phantom/case01' is not preprocessed"):
        CaseStore({"Phantom": folder}, plan_of())


def _sum(arguments):
    store, key = arguments
    return float(store[key].image().sum())


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_workers_read_what_their_parent_reads(store, method):
    key = "Phantom/case00"
    expected = _sum((store, key))
    assert len(pickle.dumps(store)) < 20_000
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(_sum, [(store, key)] * 4) == [expected] * 4


def test_only_so_many_cases_stay_open(store, monkeypatch):
    monkeypatch.setattr("medplan.samples.cases._NUM_OPEN", 2)
    for key in store.all_keys():
        assert store[key] is store[key]
    assert len(store._opened) == 2


def test_reading_imports_neither_torch_nor_an_image_library(store, folder):
    code = (
        "import sys, pickle; store = pickle.loads(bytes.fromhex(sys.argv[1]));"
        "store['Phantom/case00'].image();"
        "sys.exit(', '.join({'torch', 'SimpleITK', 'nibabel', 'scipy'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, pickle.dumps(store).hex()], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
