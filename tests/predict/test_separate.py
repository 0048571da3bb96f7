"""Each class in a file of its own, overlapping or not."""

import numpy as np
import pytest

from medplan import registry
from medplan.data.images import read_geometry, read_label
from medplan.data.labels import LabelSpace
from medplan.predict.model import Model, Options
from medplan.predict.run import predict
from tests.conftest import make_phantom, write_nifti
from tests.predict.toy import Toy, make_plan, make_run

NESTED = LabelSpace(
    names=("whole body", "organs", "bone/calcified"), values=((1, 2, 3), (2, 3), (3,)), region_order=(1, 2, 3)
)
"""The toy's three outputs lie above 0 where a voxel is brighter than 0.5, 1.5 and 2.5."""


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    monkeypatch.setattr(registry, "find", lambda name: Toy)


def predicted(tmp_path, labels=None, *, options=None):
    plan = make_plan() if labels is None else make_plan(labels=labels)
    model = Model.load(make_run(tmp_path / "run", plan), device="cpu")
    phantom = make_phantom(0, noise=0.0)
    write_nifti(tmp_path / "in" / "case_0000.nii.gz", phantom.image, phantom.spacing_mm)
    predict(tmp_path / "in", tmp_path / "out", model, separate_tasks=True, options=options)
    grid = read_geometry(tmp_path / "in" / "case_0000.nii.gz")
    files = {path.name.split(".")[0]: read_label(path) for path in (tmp_path / "out").glob("case*.nii.gz")}
    assert all(geometry == grid for _, geometry in files.values())
    return {name: array for name, (array, _) in files.items()}


def test_regions_overlap_in_their_files_and_cover_each_other_in_the_label_map(tmp_path):
    found = predicted(tmp_path, NESTED)
    assert set(found) == {"case", "case_whole_body", "case_organs", "case_bone_calcified"}
    body, organs, dense = (found[f"case_{name}"] for name in ("whole_body", "organs", "bone_calcified"))
    assert (body >= organs).all() and (organs >= dense).all() and body.sum() > organs.sum() > 0
    assert np.array_equal(found["case"], np.where(dense, 3, np.where(organs, 2, body)))


def test_files_of_exclusive_classes_are_the_label_map_in_parts(tmp_path):
    found = predicted(tmp_path)
    assert np.array_equal(found["case_liver"], found["case"] == 4) and found["case_liver"].any()
    assert np.array_equal(found["case_spleen"], found["case"] == 9)


def test_only_the_named_tasks_are_written(tmp_path):
    found = predicted(tmp_path, options=Options(classes=("spleen",)))
    assert set(found) == {"case", "case_spleen"} and found["case_spleen"].any()


def test_what_postprocessing_takes_away_belongs_to_no_region(tmp_path, monkeypatch):
    monkeypatch.setattr("medplan.predict.postprocess.apply", lambda record, label, labels: 0 * label)
    assert not any(array.any() for array in predicted(tmp_path, NESTED).values())
