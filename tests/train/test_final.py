from dataclasses import replace
from pathlib import Path

import pytest

from medplan import checkpoint, registry
from medplan.data.labels import LabelSpace
from medplan.plan.schema import Plan
from medplan.predict.model import Model
from medplan.runtime import Runtime
from medplan.train.final import evaluate_run
from tests.conftest import make_raw_dataset
from tests.predict.toy import Toy, make_plan, make_run

LABELS = LabelSpace(names=("liver", "spleen"), values=((1,), (2,)))


@pytest.fixture
def plan() -> Plan:
    plan = make_plan(labels=LABELS)
    fold = {"labelled": ("case00", "case01"), "validation": ("case02", "case03")}
    return replace(plan, datasets=(replace(plan.datasets[0], folds=(fold,)),))


@pytest.fixture
def fold(tmp_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A trained fold whose best checkpoint is its last, and the raw data."""
    monkeypatch.setattr(registry, "find", lambda name: Toy)
    make_raw_dataset(tmp_path / "raw")
    folder = make_run(tmp_path / "run", plan) / "fold_0"
    (folder / "last.pt").write_bytes((folder / "best.pt").read_bytes())
    return folder


@pytest.fixture
def predicted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids of the cases that went through a model."""
    ids: list[str] = []
    original = Model.predict_prepared

    def note(self: Model, prepared: object, **options: object) -> object:
        ids.append(prepared.case.id)  # type: ignore[attr-defined]
        return original(self, prepared, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Model, "predict_prepared", note)
    return ids


def evaluate(fold: Path, plan: Plan) -> list[str]:
    raw = fold.parents[1] / "raw"
    found = evaluate_run(fold, plan, 0, raw_folder=lambda _: raw, runtime=Runtime.choose("cpu"))
    return [str(path.relative_to(fold)) for path in found]


def test_a_best_checkpoint_that_is_the_last_is_evaluated_once(
    fold: Path, plan: Plan, predicted: list[str]
) -> None:
    assert evaluate(fold, plan) == ["validation/best/summary.json"]
    assert predicted == ["case02", "case03"]
    assert (fold / "postprocessing.json").is_file()


def test_another_last_checkpoint_is_evaluated_too_and_goes_when_it_is_the_best(
    fold: Path, plan: Plan, predicted: list[str]
) -> None:
    state = checkpoint.load(fold / "last.pt")
    checkpoint.save(fold / "last.pt", {**state, "step": state["step"] + 1})
    assert evaluate(fold, plan) == ["validation/best/summary.json", "validation/last/summary.json"]
    assert len(predicted) == 4
    checkpoint.save(fold / "best.pt", {**state, "step": state["step"] + 1})
    evaluate(fold, plan)
    assert not (fold / "validation" / "last").exists()


def test_cases_that_are_done_are_not_predicted_again(fold: Path, plan: Plan, predicted: list[str]) -> None:
    evaluate(fold, plan)
    (fold / "validation" / "best" / "case03.nii.gz").unlink()
    predicted.clear()
    evaluate(fold, plan)
    assert predicted == ["case03"]


def test_a_missing_reader_of_images_leaves_the_training_as_it_is(
    fold: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def absent(*_: object, **__: object) -> None:
        raise ImportError("No module named 'SimpleITK'")

    monkeypatch.setattr("medplan.predict.run.read_image", absent)
    assert evaluate(fold, plan) == []
    assert "unevaluated: No module named 'SimpleITK'" in caplog.text
