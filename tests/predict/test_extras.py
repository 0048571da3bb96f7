"""What a method says besides its segmentation lies beside the label map, on the image's own grid."""

import json

import numpy as np
import pytest

from medplan import checkpoint
from medplan.data.images import read_geometry, read_image, read_label
from medplan.errors import UsageError
from medplan.method import Method
from medplan.predict.folder import write_support
from medplan.predict.model import Model, Options
from medplan.predict.run import predict
from medplan.samples.cases import Case
from tests.conftest import make_phantom, write_nifti
from tests.methods.bijros_case import tiny_bijros

SPACING = (1.0, 1.0, 1.0)


@pytest.fixture
def run(tmp_path):
    """A run folder of an untrained network, whose atlas is a phantom, and an image of another shape."""
    method = tiny_bijros()
    fold = tmp_path / "run" / "fold_0"
    checkpoint.save_weights(fold / "best.pt", method, method.plan, fold=0, step=1, score=0.5)
    phantom = make_phantom(0, shape=(16, 16, 16), spacing_mm=SPACING)
    codes = phantom.label.astype(np.int16)
    write_support([Case(key="Brains/a", pixels=phantom.image[None] / 6, codes=codes)], fold)
    image = make_phantom(1, shape=(20, 24, 18), spacing_mm=SPACING).image
    (tmp_path / "in").mkdir()
    write_nifti(tmp_path / "in" / "v_0000.nii.gz", image, SPACING)
    return tmp_path


def test_volumes_lie_on_the_grid_of_the_image_and_figures_beside_them(run):
    (path,) = predict(run / "in", run / "out", Model.load(run / "run", device="cpu"), extras=True)
    geometry = read_geometry(run / "in" / "v_0000.nii.gz")
    registered, grid = read_label(run / "out" / "v_registered.nii.gz")
    assert grid.shape == geometry.shape and set(np.unique(registered)) == {0, 1, 2}
    assert read_image([run / "out" / "v_atlas.nii.gz"], channels=1).array.shape == (1, 20, 24, 18)
    flow = read_image([run / "out" / "v_flow.nii.gz"]).array
    assert flow.shape == (3, 20, 24, 18) and np.abs(flow).max() < 0.01
    figures = json.loads((run / "out" / "v_extras.json").read_text())
    assert figures["folding_percent"] == 0 and figures["lncc_after"] > 0
    assert path.name == "v.nii.gz"


def test_without_being_asked_nothing_more_is_written_and_asking_later_adds_it(run):
    model = Model.load(run / "run", device="cpu")
    predict(run / "in", run / "out", model)
    assert not list((run / "out").glob("*_flow*"))
    predict(run / "in", run / "out", model, extras=True)
    assert (run / "out" / "v_flow.nii.gz").is_file()


def test_a_method_with_nothing_to_add_says_so(run, monkeypatch):
    model = Model.load(run / "run", device="cpu")
    monkeypatch.setattr(type(model.methods[0]), "extras", Method.extras)
    with pytest.raises(UsageError, match="gives out nothing besides"):
        predict(run / "in", run / "out", model, extras=True)
    assert not (run / "out").exists(), "no case is predicted for nothing"


def test_a_class_that_is_not_known_stops_before_any_case_is_predicted(run):
    with pytest.raises(UsageError, match="no class 'typo'"):
        predict(
            run / "in", run / "out", Model.load(run / "run", device="cpu"), options=Options(classes=("typo",))
        )
    assert not (run / "out").exists()
