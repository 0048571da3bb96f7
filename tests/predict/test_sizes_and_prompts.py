"""Label maps of another size, answers on the grid of the output, boxes by class, and the note on prompts."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from medplan import registry
from medplan.errors import DataError, UsageError
from medplan.evaluate.run import evaluate
from medplan.method import Needs
from medplan.plan.schema import Grid
from medplan.predict.model import Model, Options
from medplan.predict.run import predict
from tests.conftest import make_phantom, write_nifti
from tests.predict.toy import LABELS, Toy, make_plan, make_run


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "find", lambda name: Toy)


@pytest.fixture
def model(tmp_path: Path) -> Model:
    plan = make_plan(grid=Grid(spacing_mm=None, shape=(1, 16, 16), orientation=None, crop="none"))
    return Model.load(make_run(tmp_path / "run", plan), device="cpu")


def picture(height: int = 40, width: int = 28) -> np.ndarray:
    """A spleen in the middle of a liver, left half only."""
    image = np.ones((height, width))
    image[:, : width // 2] = 3
    image[height // 4 : height // 2, : width // 4] = 5
    return image


def test_pictures_come_back_at_any_size_over_the_same_extent(model: Model) -> None:
    own = model.predict_array(picture())
    assert own.shape == (40, 28)
    for size in ((80, 56), (20, 14), (7, 5)):
        other = model.predict_array(picture(), options=Options(output_size=size))
        assert other.shape == size
        rows = np.arange(size[0]) * 40 // size[0]
        columns = np.arange(size[1]) * 28 // size[1]
        assert (other == own[rows][:, columns]).mean() > 0.8


def test_a_size_is_refused_for_volumes(model: Model) -> None:
    with pytest.raises(UsageError, match="--output-size is for pictures"):
        model.predict_array(np.ones((4, 16, 16)), (1, 1, 1), options=Options(output_size=(8, 8)))


def test_a_method_that_answers_on_the_output_grid_is_not_interpolated(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def checkers(self: Toy, case: object, support: object, shape: tuple[int, int, int]) -> object:
        asked.append(shape)
        field = torch.zeros(3, *shape)
        field[1, :, ::2, ::2] = 1
        return iter([field])

    monkeypatch.setattr(Toy, "answers_at", checkers)
    label = model.predict_array(picture(), options=Options(output_size=(9, 6)))
    assert asked == [(1, 9, 6)]
    expected = np.zeros((9, 6))
    expected[::2, ::2] = 4
    np.testing.assert_array_equal(label, expected)
    model.predict_array(picture(), options=Options(mirror=True))
    assert len(asked) == 1, "mirrored windows are those of the predictor"


def test_boxes_may_be_given_by_class(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}
    original = Toy.predictor

    def spy(self: Toy, case: object, support: object) -> object:
        seen[case.id] = case.prompts
        return original(self, case, support)

    monkeypatch.setattr(Toy, "predictor", spy)
    inputs = tmp_path / "in"
    phantom = make_phantom(1)
    for name in ("one", "two"):
        write_nifti(inputs / f"{name}_0000.nii.gz", phantom.image[:1], phantom.spacing_mm)
    prompts = tmp_path / "boxes.json"
    prompts.write_text(json.dumps({"one": {"liver": [[0, 0, 8, 9]], "spleen": []}}))
    predict(inputs, tmp_path / "out", model, prompts=prompts, options=Options(prompt="none"))
    boxes = seen["one"]["boxes"]
    assert boxes["liver"].shape == (1, 6) and boxes["spleen"].shape == (0, 6)
    assert seen["two"] == {"mode": "none"}
    note = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert note["prompts"] == "boxes for 1 of 2 cases, else none"
    prompts.write_text(json.dumps({"one": {"livre": [[0, 0, 8, 9]]}}))
    with pytest.raises(DataError, match=r"no class 'livre' \(did you mean 'liver'"):
        predict(inputs, tmp_path / "out", model, prompts=prompts)


def test_boxes_are_refused_where_nothing_would_look_at_them(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Toy, "needs", Needs())
    phantom = make_phantom(1)
    write_nifti(tmp_path / "in" / "one_0000.nii.gz", phantom.image, phantom.spacing_mm)
    (tmp_path / "boxes.json").write_text("{}")
    with pytest.raises(UsageError, match="takes no boxes"):
        predict(tmp_path / "in", tmp_path / "out", model, prompts=tmp_path / "boxes.json")


def test_an_evaluation_says_what_the_predictions_were_prompted_with(model: Model, tmp_path: Path) -> None:
    phantom = make_phantom(1)
    write_nifti(tmp_path / "in" / "one_0000.nii.gz", phantom.image, phantom.spacing_mm)
    (path,) = predict(tmp_path / "in", tmp_path / "out", model)
    summary = evaluate(tmp_path / "out", tmp_path / "out", LABELS, output=tmp_path, surface=False)
    assert summary.prompts == "auto" and path.is_file()
    assert json.loads((tmp_path / "summary.json").read_text())["medplan"]["prompts"] == "auto"
