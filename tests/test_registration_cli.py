"""Joint registration and segmentation from the command line, with images of a second dataset besides."""

import json
from pathlib import Path

import pytest

from medplan.cli import main
from tests.conftest import make_raw_dataset

TINY = ["--set", "grid.shape=[16,16,16]", "--set", "config.channels=[4,8]", "--set", "config.window=5"]
SHARES = ["--set", "config.encoder_share=0.4", "--set", "config.encoder_steps=0"]
LENGTH = ["--iters", "5", "--set", "training.validate_every=5"]


def medplan(*arguments: str | Path) -> None:
    assert main([str(argument) for argument in arguments]) == 0


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a run on one atlas and the images of two datasets."""
    space = tmp_path_factory.mktemp("space")
    make_raw_dataset(space / "raw_data" / "Dataset001_Own", num_labelled=2, num_unlabelled=1, num_test=1)
    make_raw_dataset(space / "raw_data" / "Dataset002_Other", num_labelled=1, num_unlabelled=1)
    where = ["-d", "Own", "-m", "bijros", "--workspace", space]
    medplan("plan_and_preprocess", *where, "--pretrain-on", "Other", "--no-align", *TINY, *SHARES, *LENGTH)
    medplan("train", *where, "--device", "cpu", "--workers", "0")
    return space


def test_images_of_the_second_dataset_serve_the_first_phase_only(space: Path) -> None:
    fold = space / "results" / "Own" / "bijros" / "default" / "fold_0"
    plan = json.loads((fold / "plan.json").read_text())
    assert [dataset["name"] for dataset in plan["datasets"]] == ["Own", "Other"]
    assert plan["datasets"][1]["folds"] == [{"pretrain": ["case00", "case01"]}]
    lines = [json.loads(line) for line in (fold / "log.jsonl").read_text().splitlines()]
    phases = dict.fromkeys(line["phase"] for line in lines if "losses" in line)
    assert list(phases) == ["encoder", "bilevel"]
    assert {case.name.split(".")[0] for case in (space / "preprocessed" / "Other").rglob("*.image.b2nd")} == {
        "case00",
        "case01",
    }


def test_predictions_with_extras_are_evaluated_with_their_figures(space: Path, tmp_path: Path) -> None:
    raw, out = space / "raw_data" / "Dataset001_Own", tmp_path / "out"
    where = ["-d", "Own", "-m", "bijros", "--workspace", space]
    medplan("predict", "-i", raw / "imagesTs", "-o", out, "--extras", "--device", "cpu", *where)
    medplan("evaluate", "-i", out, "-r", raw / "labelsTs", "-d", "Own", "--workspace", space)
    summary = json.loads((out / "summary.json").read_text())
    assert {"folding_percent", "smoothness", "lncc_before", "lncc_after"} <= summary["medplan"][
        "figures"
    ].keys()
    assert (out / "figures.csv").read_text().startswith("case,")
    medplan("report", "-i", out, "-o", tmp_path / "r.html", *where)
    assert "folding percent" in (tmp_path / "r.html").read_text()
