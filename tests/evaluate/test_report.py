import io
import itertools
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Picture

from medplan.cli import main
from medplan.data.images import Geometry, write_image, write_label
from medplan.data.labels import LabelSpace
from medplan.errors import UsageError
from medplan.evaluate.charts import scatter_chart, ticks
from medplan.evaluate.overlays import PREDICTION_COLOUR, REFERENCE_COLOUR, overlay, radiological
from medplan.evaluate.report import Evaluation, write_report
from medplan.evaluate.run import evaluate, evaluate_pairs
from medplan.plan.schema import DatasetPlan, Grid, Normalisation, Plan, Training
from medplan.records import write_json
from tests.conftest import make_raw_dataset

LABELS = LabelSpace(
    names=("liver <left & right>", "spleen"), values=((1,), (2, 3)), others_are_background=True
)
GRID = Geometry(shape=(10, 24, 20), spacing_mm=(3.0, 1.0, 1.0))


class Checker(HTMLParser):
    """Notes what a page would load, and whether its tags are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "data")]
        if tag not in ("meta", "img", "br", "line", "circle", "rect", "path"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("line", "circle", "rect", "path"):
            assert self.open.pop() == tag


def check(page: Path) -> Checker:
    checker = Checker()
    checker.feed(page.read_text())
    assert not checker.open
    return checker


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    """Twelve cases, worse and worse; in one the spleen was missed, in one it is not there."""
    folder = tmp_path_factory.mktemp("cases")
    images: dict[str, tuple[Path, ...]] = {}
    for name in ("images", "p", "r"):
        (folder / name).mkdir()
    for number in range(12):
        reference = np.zeros(GRID.shape, dtype=np.uint8)
        reference[3:8, 4:12, 3:10] = 1
        reference[4:7, 14:20, 10:16] = 2 if number else 0
        prediction = np.roll(reference, number // 3, axis=2)
        if number == 11:
            prediction[prediction == 2] = 0
        case = f"case{number:02d}"
        rng = np.random.default_rng(number)
        image = (reference + rng.normal(0, 0.2, GRID.shape)).astype(np.float32)
        images[case] = (write_image(folder / "images" / f"{case}_0000.nii.gz", image, GRID),)
        write_label(folder / "p" / f"{case}.nii.gz", prediction, GRID)
        write_label(folder / "r" / f"{case}.nii.gz", reference, GRID)
    return Evaluation(name="test, best", summary=evaluate(folder / "p", folder / "r", LABELS), images=images)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "fold0"
    folder.mkdir()
    lines = (
        json.dumps(
            {"step": s, "phase": "main", "losses": {"loss": 1 / (s + 1)}, "validation": {"score": s / 60}}
        )
        for s in range(50)
    )
    (folder / "log.jsonl").write_text("\n".join(lines))
    plan: dict[str, Any] = {
        "name": "Phantom", "method": "supervised", "patch_size": [8, 16, 16], "training": {"lr": 0.01},
        "datasets": [{"name": "Phantom", "folds": [{"labelled": ["a", "b"], "validation": ["c"]}]}],
        "reasons": {"patch_size": "fits <24> GB", "training.lr": "as in the paper", "regime": "all labelled"},
    }  # fmt: skip
    (folder / "plan.json").write_text(json.dumps(plan))
    (folder / "run.json").write_text(
        json.dumps({"environment": {"torch": "2.14.1"}, "home": "http://example.org"})
    )
    return folder


@pytest.fixture(scope="module")
def page(evaluation: Evaluation, run_folder: Path) -> Path:
    return write_report(run_folder, run_folder / "report.html", evaluations=[evaluation])


def test_the_page_loads_nothing_and_names_every_case(page: Path, evaluation: Evaluation) -> None:
    found, text = check(page), page.read_text()
    assert found.loads and all(load.startswith("data:image/") for load in found.loads)
    assert not {"script", "link", "iframe", "object"} & set(found.tags)
    assert "@import" not in text and "url(" not in text
    assert all(case.id in text for case in evaluation.summary.cases)


def test_the_page_shows_worst_median_and_best_cases_once(page: Path) -> None:
    text = page.read_text()
    shown = re.findall(r'class="rank">(\w+)</span><b>(\w+)</b>', text)
    assert [kind for kind, _ in shown] == ["worst"] * 4 + ["median"] * 2 + ["best"] * 2
    assert len({case for _, case in shown}) == len(shown) == text.count("<img ")
    assert shown[0][1] == "case11"


def test_texts_are_escaped(evaluation: Evaluation, tmp_path: Path) -> None:
    bare = Evaluation(name="<i>test</i>", summary=evaluation.summary)
    plan = {"name": "<b>A & B</b>", "method": "toy", "reasons": {"patch_size": "fits <24> GB"}}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    text = write_report(tmp_path, tmp_path / "r.html", evaluations=[bare]).read_text()
    assert "&lt;b&gt;A &amp; B&lt;/b&gt;" in text and "<b>A & B" not in text
    assert "liver &lt;left &amp; right&gt;" in text and "<left" not in text
    assert "fits &lt;24&gt; GB" in text
    assert "<i>test" not in text


def test_the_plan_is_shown_with_its_reasons(page: Path) -> None:
    text = page.read_text()
    for words in ("training.lr", "as in the paper", "all labelled", "2 labelled, 1 validation", "2.14.1"):
        assert words in text


def test_validation_is_shown_on_its_images_however_plan_and_folder_are_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = make_raw_dataset(tmp_path / "raw_data" / "Dataset003_Shapes", num_labelled=1)
    fold = tmp_path / "results" / "another name" / "toy" / "default" / "fold_0"
    labels = LabelSpace(names=("liver", "spleen"), values=((1,), (2,)))
    label = raw / "labelsTr" / "case00.nii.gz"
    evaluate_pairs([("case00", label, label)], labels, output=fold / "validation" / "best")
    dataset = DatasetPlan(
        name="Shapes", channels=("T1",), modalities=("MR",), labels=labels,
        normalisations=(Normalisation(scheme="zscore"),), folds=({"validation": ("case00",)},),
    )  # fmt: skip
    plan = Plan(
        name="another name", method="toy", dims=3, datasets=(dataset,), grid=Grid(spacing_mm=None),
        patch_size=(8, 8, 8), encoder="unet", training=Training(iterations=1, batch_size=1, lr=0.1),
    )  # fmt: skip
    write_json(plan, fold / "plan.json")
    (fold / "best.pt").touch()
    monkeypatch.chdir(fold.parent)
    assert main(["report", "--model", ".", "--workspace", str(tmp_path)]) == 0
    assert check(fold.parent / "report.html").tags.count("img") == 1


def test_last_and_best_checkpoints_and_folds_are_compared(
    evaluation: Evaluation, run_folder: Path, tmp_path: Path
) -> None:
    both = [
        Evaluation(name=f"fold {fold}, {which}", summary=evaluation.summary, group=which)
        for fold, which in itertools.product(range(2), ("best", "last"))
    ]
    page = write_report(run_folder, tmp_path / "r.html", evaluations=both)
    check(page)
    text = page.read_text()
    assert all(item.name in text for item in both)
    assert "Over folds and seeds" in text
    assert "No image was given" in text


def test_a_page_about_training_alone_is_written(run_folder: Path, tmp_path: Path) -> None:
    check(write_report(run_folder, tmp_path / "r.html", evaluations=[]))
    with pytest.raises(UsageError, match="nothing to report"):
        write_report(tmp_path / "elsewhere", tmp_path / "r.html", evaluations=[])


def test_a_broken_image_is_said_so_in_its_place(
    evaluation: Evaluation, run_folder: Path, tmp_path: Path
) -> None:
    broken = Evaluation(
        name="test", summary=evaluation.summary, images={"case11": (tmp_path / "gone.nii.gz",)}
    )
    text = write_report(run_folder, tmp_path / "r.html", evaluations=[broken]).read_text()
    assert "No overlay" in text and "gone.nii.gz" in text


def test_cases_without_any_class_do_not_break_the_page(run_folder: Path, tmp_path: Path) -> None:
    empty = np.zeros(GRID.shape, dtype=np.uint8)
    for name in ("p", "r"):
        (tmp_path / name).mkdir()
        write_label(tmp_path / name / "nothing.nii.gz", empty, GRID)
    summary = evaluate(tmp_path / "p", tmp_path / "r", LABELS)
    assert math.isnan(summary.mean("dice"))
    page = write_report(run_folder, tmp_path / "r.html", evaluations=[Evaluation(name="e", summary=summary)])
    check(page)
    assert "nothing" in page.read_text()


DIRECTIONS = [np.array(order)[:, None] == np.arange(3)[None] for order in itertools.permutations(range(3))]


@pytest.mark.parametrize("axes", DIRECTIONS, ids=str)
@pytest.mark.parametrize("signs", list(itertools.product([-1, 1], repeat=3)), ids=str)
def test_display_is_the_same_for_every_orientation_of_storage(axes: Any, signs: tuple[int, ...]) -> None:
    # Patient axes: left, posterior, superior. Voxel (i, j, k) of the file lies at direction @ (i, j, k).
    direction = axes.astype(float) * np.array(signs)[None]
    size = np.abs(direction).T @ np.array([3, 4, 5])
    index = np.stack(np.meshgrid(*(np.arange(int(n)) for n in size), indexing="ij"), -1)
    world = index @ direction.T
    world -= world.reshape(-1, 3).min(0)
    stored = (world @ np.array([1, 10, 100])).transpose(2, 1, 0)
    spacing_xyz = np.abs(direction).T @ np.array([0.5, 1.0, 2.0])
    geometry = Geometry(
        shape=stored.shape,
        spacing_mm=(float(spacing_xyz[2]), float(spacing_xyz[1]), float(spacing_xyz[0])),
        direction=tuple(direction.ravel().tolist()),
    )
    shown, spacing = radiological(stored, geometry)
    assert spacing == (2.0, 1.0, 0.5)
    s, p, left = np.meshgrid(np.arange(5), np.arange(4), np.arange(3), indexing="ij")
    np.testing.assert_array_equal(shown, left + 10 * p + 100 * s)


def share_of(colour: str, picture: bytes) -> float:
    pixels = np.asarray(Picture.open(io.BytesIO(picture)).convert("RGB")).astype(int)
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return float((np.abs(pixels - wanted).max(-1) < 30).mean())


def test_overlays_of_volumes_and_pictures_outline_both(evaluation: Evaluation, tmp_path: Path) -> None:
    case = evaluation.summary.cases[8]
    volume = overlay(evaluation.images[case.id], case.prediction, case.reference, keys=("1", "(2, 3)"))
    grid = Geometry(shape=(1, 30, 40), spacing_mm=None)
    label = np.zeros(grid.shape, dtype=np.uint8)
    label[0, 8:20, 10:25] = 1
    reference = write_label(tmp_path / "r.png", label, grid)
    prediction = write_label(tmp_path / "p.png", np.roll(label, 5, axis=2), grid)
    colours = np.full((30, 40, 3), (120, 40, 60), dtype=np.uint8)
    Picture.fromarray(colours).save(tmp_path / "image.png")
    flat = overlay((tmp_path / "image.png",), prediction, reference, keys=("1",))
    for picture in (volume, flat):
        assert share_of(REFERENCE_COLOUR, picture) > 0.0005
        assert share_of(PREDICTION_COLOUR, picture) > 0.0005


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.31, 0.97), (-3, 1e5), (1e-7, 3e-7), (2, 2)])
def test_ticks_are_few_round_and_inside(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 1 <= len(found) <= 8
    assert all(low - 1e-12 <= tick <= high + 1e-12 for tick in found)


@pytest.mark.parametrize(("low", "high"), [(310.0, 390.0), (210.0, 340.0), (0.9, 12.0), (1e-3, 1e4)])
def test_logarithmic_axes_have_numbers_however_short_they_are(low: float, high: float) -> None:
    chart = scatter_chart({"a": [(low, high, "one"), (high, low, "two")]}, title="Volume", unit="ml")
    numbers = [float(text.replace(",", "")) for text in re.findall(r'class="tick"[^>]*>([\d.,e+-]+)<', chart)]
    assert len(set(numbers)) >= 2
