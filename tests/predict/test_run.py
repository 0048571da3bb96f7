import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from medplan import registry
from medplan.data.dataset import open_dataset
from medplan.data.images import read_geometry, read_label, write_label
from medplan.errors import DataError, UsageError
from medplan.plan.schema import Grid
from medplan.predict.model import Model, Options
from medplan.predict.postprocess import Postprocessing
from medplan.predict.run import predict
from tests.conftest import make_phantom, write_nifti
from tests.predict.toy import Toy, make_plan, make_run

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "find", lambda name: Toy)


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return Model.load(make_run(tmp_path / "run", make_plan()), device="cpu")


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    for number in range(3):
        phantom = make_phantom(number, noise=0.0)
        write_nifti(tmp_path / "in" / f"case{number}_0000.nii.gz", phantom.image, phantom.spacing_mm)
    return tmp_path / "in"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_folder_gives_a_label_map_per_case_on_its_grid(model: Model, inputs: Path, tmp_path: Path) -> None:
    written = predict(inputs, tmp_path / "out", model)
    assert [path.name for path in written] == [f"case{number}.nii.gz" for number in range(3)]
    for number, path in enumerate(written):
        label, geometry = read_label(path)
        assert geometry == read_geometry(inputs / f"case{number}_0000.nii.gz")
        truth = np.array([0, 4, 9])[make_phantom(number).label]
        assert 2 * ((label == truth) & (truth > 0)).sum() / ((label > 0).sum() + (truth > 0).sum()) > 0.9


def test_the_label_maps_say_what_their_values_mean(model: Model, inputs: Path, tmp_path: Path) -> None:
    predict(inputs, tmp_path / "out", model)
    description = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert description["labels"] == {"background": 0, "liver": 4, "spleen": 9}
    raw = tmp_path / "Again"
    (raw / "imagesTr").mkdir(parents=True)
    (raw / "dataset.json").write_text(json.dumps(description))
    (inputs / "case0_0000.nii.gz").rename(raw / "imagesTr" / "case0_0000.nii.gz")
    assert open_dataset(raw).labels == model.dataset.labels


@pytest.mark.parametrize("ending", [".nii", ".nrrd", ".mha"])
def test_the_output_has_the_format_of_the_input(model: Model, tmp_path: Path, ending: str) -> None:
    phantom = make_phantom(noise=0.0)
    source = write_nifti(tmp_path / "in" / f"scan{ending}", phantom.image, phantom.spacing_mm)
    (path,) = predict(source, tmp_path / "out", model)
    assert path.name == f"scan{ending}"
    assert read_label(path)[1] == read_geometry(source)


def test_pictures_become_png(tmp_path: Path) -> None:
    from PIL import Image

    plan = make_plan(
        dims=2, patch_size=(1, 16, 16), grid=Grid(spacing_mm=None, orientation=None, crop="none")
    )
    model = Model.load(make_run(tmp_path / "run", plan), device="cpu")
    (tmp_path / "in").mkdir()
    Image.fromarray(np.full((20, 30), 5, np.uint8)).save(tmp_path / "in" / "photo.bmp")
    (path,) = predict(tmp_path / "in", tmp_path / "out", model)
    assert path.name == "photo.png"
    assert (read_label(path)[0] == 9).all()


def test_complete_outputs_are_kept_and_others_are_made_again(
    model: Model, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    predict(inputs, out, model)
    first = contents(out)
    predicted = []
    original = Model.predict_prepared

    def record(self: Model, prepared: object, **named: object) -> np.ndarray:
        predicted.append(prepared.case.id)
        return original(self, prepared, **named)

    monkeypatch.setattr(Model, "predict_prepared", record)
    predict(inputs, out, model)
    assert predicted == [] and contents(out) == first
    (out / "case1.nii.gz").write_bytes(first["case1.nii.gz"][:-9])
    (out / "case2.nii.gz").unlink()
    predict(inputs, out, model)
    assert predicted == ["case1", "case2"] and contents(out) == first
    phantom = make_phantom(7, noise=0.0)
    write_nifti(inputs / "case0_0000.nii.gz", phantom.image, phantom.spacing_mm)
    predict(inputs, out, model)
    assert predicted[2:] == ["case0"]
    predict(inputs, out, model, options=Options(classes=("liver",)))
    assert predicted[3:] == ["case0", "case1", "case2"]
    predicted.clear()
    plain = Options(postprocessing=False)
    predict(inputs, out, model, options=plain)
    model.postprocessing = Postprocessing(largest_foreground=True)
    predict(inputs, out, model, options=plain)
    assert len(predicted) == 3, "what is left out does not matter"
    predict(inputs, out, model)
    predict(inputs, out, model)
    assert len(predicted) == 6


def test_corrections_are_moved_aside_when_a_case_is_predicted_again(
    model: Model, inputs: Path, tmp_path: Path
) -> None:
    (path, *_) = predict(inputs, tmp_path / "out", model)
    label, geometry = read_label(path)
    corrected = np.where(label == 4, 0, label)
    write_label(path, corrected, geometry)
    predict(inputs, tmp_path / "out", model)
    assert (read_label(path)[0] == label).all()
    assert (read_label(tmp_path / "out" / "changed" / path.name)[0] == corrected).all()
    predict(inputs, tmp_path / "out", model, options=Options(classes=("liver",)))
    assert [kept.name for kept in (tmp_path / "out" / "changed").iterdir()] == [path.name]


def test_the_record_of_a_label_map_names_its_images(model: Model, inputs: Path, tmp_path: Path) -> None:
    predict(inputs, tmp_path / "out", model)
    record = json.loads((tmp_path / "out" / ".medplan" / "case0.json").read_text())
    assert record["images"] == [str((inputs / "case0_0000.nii.gz").resolve())]


def test_what_another_process_is_writing_is_left_alone(model: Model, inputs: Path, tmp_path: Path) -> None:
    theirs, own = (tmp_path / "out" / f".{case}.nii.gz.1.tmp" for case in ("case10", "case1"))
    for folder in (theirs, own):
        folder.mkdir(parents=True)
    predict(inputs, tmp_path / "out", model)
    assert theirs.is_dir() and not own.exists()


def test_one_bad_file_does_not_stop_the_others(model: Model, inputs: Path, tmp_path: Path) -> None:
    bad = inputs / "case1_0000.nii.gz"
    content = bad.read_bytes()
    bad.write_bytes(content[: len(content) // 2])
    with pytest.raises(
        DataError, match=r"1 of 3 cases could not be predicted \('case1'\).*case1_0000\.nii\.gz"
    ):
        predict(inputs, tmp_path / "out", model)
    assert sorted(p.name for p in (tmp_path / "out").glob("*.nii.gz")) == ["case0.nii.gz", "case2.nii.gz"]


def test_a_shortage_of_memory_is_said_in_words(
    model: Model, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **named: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Model, "predict_prepared", fail)
    with pytest.raises(DataError, match=r"3 of 3 cases .* not enough memory"):
        predict(inputs, tmp_path / "out", model)


def test_an_image_is_never_overwritten(model: Model, tmp_path: Path) -> None:
    phantom = make_phantom()
    source = write_nifti(tmp_path / "in" / "scan.nii.gz", phantom.image, phantom.spacing_mm)
    before = source.read_bytes()
    with pytest.raises(UsageError, match="would overwrite its image"):
        predict(source, tmp_path / "in", model)
    assert contents(tmp_path / "in") == {"scan.nii.gz": before}


def test_the_description_of_other_data_is_never_overwritten(
    model: Model, inputs: Path, tmp_path: Path
) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "dataset.json").write_text("precious")
    with pytest.raises(UsageError, match="would be lost"):
        predict(inputs, tmp_path / "raw", model)
    assert (tmp_path / "raw" / "dataset.json").read_text() == "precious"


def test_probabilities_are_written_beside_the_labels(model: Model, inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (path, *_) = predict(inputs, out, model, probabilities=True)
    with np.load(out / "case0_probabilities.npz") as arrays:
        probabilities = arrays["probabilities"]
    label, geometry = read_label(path)
    assert probabilities.shape == (3, *geometry.shape) and probabilities.dtype == np.float16
    assert (np.array([0, 4, 9])[probabilities.argmax(0)] == label).mean() > 0.999
    first = contents(out)
    assert not [name for name in first if name.endswith(".npy") or ".tmp" in name]
    (out / "case0_probabilities.npz").unlink()
    predict(inputs, out, model, probabilities=True)
    assert contents(out) == first


def test_at_most_one_case_is_read_ahead(
    model: Model, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3, 6):
        phantom = make_phantom(number, noise=0.0)
        write_nifti(inputs / f"case{number}_0000.nii.gz", phantom.image, phantom.spacing_mm)
    read, done, ahead = [], [], []
    original_prepare, original_predict = Model.prepare, Model.predict_prepared

    def prepare(self: Model, *arguments: object, **named: object) -> object:
        read.append(threading.current_thread().name)
        return original_prepare(self, *arguments, **named)

    def slow(self: Model, *arguments: object, **named: object) -> np.ndarray:
        time.sleep(0.2)
        ahead.append(len(read) - len(done) - 1)
        done.append(1)
        return original_predict(self, *arguments, **named)

    monkeypatch.setattr(Model, "prepare", prepare)
    monkeypatch.setattr(Model, "predict_prepared", slow)
    predict(inputs, tmp_path / "out", model)
    assert len(read) == 6 and max(ahead) == 1 and ahead[-1] == 0
    assert all(name.startswith("read-ahead") for name in read)


@pytest.mark.slow
def test_killing_it_and_starting_again_gives_the_same_bytes(
    inputs: Path, tmp_path: Path, model: Model
) -> None:
    predict(inputs, tmp_path / "whole", model, probabilities=True)
    script = (
        "import sys, time; from pathlib import Path; import torch\n"
        "from medplan import registry; from tests.predict.toy import Toy\n"
        "from medplan.predict.model import Model; from medplan.predict import run\n"
        "registry.find = lambda name: Toy\n"
        "slow = run.write_label\n"
        "def write(path, *rest):\n"
        "    made = slow(path, *rest); print(path.name, flush=True); time.sleep(float(sys.argv[3])); "
        "return made\n"
        "run.write_label = write\n"
        "model = Model.load(sys.argv[1], device='cpu')\n"
        "run.predict(Path(sys.argv[4]), Path(sys.argv[2]), model, probabilities=True)\n"
    )
    where = [str(tmp_path / "run"), str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def start(pause: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", script, *where, pause, str(inputs)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)

    killed = start("60")
    assert killed.stdout is not None and killed.stdout.readline().strip() == "case0.nii.gz"
    # A half-written file of the kind that the writer leaves when it dies.
    leftover = tmp_path / "out" / f".case1.nii.gz.{killed.pid}.tmp"
    leftover.mkdir()
    (leftover / "case1.nii.gz").write_bytes(b"half")
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    killed.stdout.close()
    assert not (tmp_path / "out" / ".medplan" / "case0.json").exists()
    again = start("0")
    assert again.communicate()[0].split() == ["case0.nii.gz", "case1.nii.gz", "case2.nii.gz"]
    assert again.returncode == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_boxes_reach_the_case_in_voxels_of_its_grid(
    model: Model, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {}
    original = Toy.predictor

    def spy(self: Toy, case: object, support: object) -> object:
        seen[case.id] = (case.prompts, case.shape)
        return original(self, case, support)

    monkeypatch.setattr(Toy, "predictor", spy)
    phantom = make_phantom(1, noise=0.0)
    where = np.argwhere(phantom.label == 2)
    (z0, y0, x0), (z1, y1, x1) = where.min(0).tolist(), (where.max(0) + 1).tolist()
    prompts = tmp_path / "boxes.json"
    prompts.write_text(json.dumps({"case1": [[x0, y0, z0, x1, y1, z1], [0, 0, 24, 28]]}))
    predict(inputs, tmp_path / "out", model, prompts=prompts)
    assert "boxes" not in seen["case0"][0]
    (spleen, everything), shape = seen["case1"][0]["boxes"], seen["case1"][1]
    np.testing.assert_allclose(everything, [0, 0, 0, *shape])
    size = (spleen[3:] - spleen[:3]) * 1.5
    np.testing.assert_allclose(size, np.array([z1 - z0, y1 - y0, x1 - x0]) * phantom.spacing_mm, rtol=0.05)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "not valid JSON"),
        ("[]", "expected"),
        ('{"case1": [[1, 2, 3]]}', r"a box is \[x0, y0, x1, y1\]"),
        ('{"case1": [[1, 2, NaN, 4]]}', r"a box is \[x0, y0, x1, y1\]"),
        (
            '{"case1": [[1, 2, 3, 4], [900, 2, 950, 4]]}',
            r"from 900, 2 to 950, 4 .* lies outside of the image",
        ),
        ('{"case1": [[1, 2, -5, 3, 4, -1]]}', r"from 1, 2, -5 to 3, 4, -1 .* lies outside"),
        ('{"case1": [[5, 5, 5, 9]]}', "is empty"),
        ('{"cas1": []}', r"no case 'cas1' among the inputs \(did you mean 'case1'\?\)"),
    ],
)
def test_bad_boxes_are_named(model: Model, inputs: Path, tmp_path: Path, text: str, match: str) -> None:
    (tmp_path / "boxes.json").write_text(text)
    with pytest.raises(DataError, match=match):
        predict(inputs, tmp_path / "out", model, prompts=tmp_path / "boxes.json")
