"""Pictures from raw data to outlines, by the commands that a user types."""

import base64
import io
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from medplan.checkpoint import load
from medplan.cli import main
from medplan.methods import imedsam
from medplan.networks.released_imedsam import released_state
from tests.networks.test_implicit_sam import released_names, sam_file

MEASURED = """
import sys
from medplan.cli import main
from medplan.runtime import Runtime
assert main(sys.argv[1:]) == 0
print("peak", Runtime.choose("cpu").peak_bytes())
"""


def make_pictures(root, sizes=((40, 56), (64, 48), (50, 50), (36, 60), (48, 48), (44, 52))):
    """Green discs on red ground, one per picture."""
    folder = root / "raw_data" / "Pictures"
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    for number, (height, width) in enumerate(sizes):
        rows, columns = np.ogrid[:height, :width]
        disc = (rows - height / 2) ** 2 + (columns - width / 2) ** 2 < 100
        pixels = np.where(disc[..., None], (10, 160, 10), (150, 10, 10)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "imagesTr" / f"p{number}_0000.png")
        Image.fromarray(disc.astype(np.uint8)).save(folder / "labelsTr" / f"p{number}.png")
    description = {
        "channel_names": {"0": "R", "1": "G", "2": "B"}, "labels": {"background": 0, "disc": 1},
        "numTraining": len(sizes), "file_ending": ".png",
    }  # fmt: skip
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


@pytest.fixture
def plan(tmp_path):
    make_pictures(tmp_path)
    where = ["-d", "Pictures", "-m", "imedsam", "--workspace", str(tmp_path)]
    small = ["--encoder", "tiny", "--patch-size", "32", "32", "--batch-size", "2", "--gpu-memory", "2"]
    return ["plan_and_preprocess", *where, *small], where


@pytest.mark.parametrize("weights", ["sam_tiny.pth", "none"])
def test_a_weight_file_that_is_not_there_is_said_with_the_plan(plan, tmp_path, monkeypatch, capsys, weights):
    (_, *options), _ = plan
    monkeypatch.setenv("MEDPLAN_WEIGHTS", str(tmp_path))
    assert main(["plan", *options, "--encoder-weights", weights]) == 0
    assert ("Before training: The weight file" in capsys.readouterr().out) == (weights != "none")


@pytest.mark.slow
def test_released_adapters_become_a_model_without_a_step(plan, tmp_path, monkeypatch):
    command, where = plan
    monkeypatch.setitem(imedsam.SAM_FILES, "tiny", "sam_tiny.pth")
    monkeypatch.setenv("MEDPLAN_WEIGHTS", str(tmp_path))
    adapters = released_names(4)
    torch.save(sam_file(64), tmp_path / "sam_tiny.pth")
    torch.save({"model": adapters, "optimizer": {}, "epoch": 9}, tmp_path / "model_best.pth")
    weights = ["--encoder-weights", "sam_tiny.pth+model_best.pth", "--set", "config.compat=true"]
    assert main([*command, *weights]) == 0
    assert main(["train", *where, "--iters", "0", "--device", "cpu"]) == 0
    run = tmp_path / "results" / "Pictures" / "imedsam" / "default"
    state = load(run / "fold_0" / "best.pt")["weights"]
    for name, value in released_state(adapters).items():
        assert torch.equal(state[f"network.{name}"], value), name
    pictures = tmp_path / "raw_data" / "Pictures" / "imagesTr"
    assert main(["predict", *where, "-i", str(pictures), "-o", str(tmp_path / "out"), "--device", "cpu"]) == 0
    assert len(list((tmp_path / "out").glob("p*.png"))) == 6


@pytest.mark.slow
def test_the_report_draws_outlines_on_the_colours_of_a_picture(plan, tmp_path):
    command, where = plan
    assert main([*command, "--encoder-weights", "none", "--iters", "2"]) == 0
    assert main(["train", *where, "--device", "cpu"]) == 0
    assert main(["report", *where]) == 0
    page = next((tmp_path / "results").rglob("report.html")).read_text()
    shown = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    assert shown, "every validation case has its picture"
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(shown[0])))).astype(int)
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    for name, here in (
        ("ground", (red > 120) & (green < 40) & (blue < 40)),
        ("disc", (green > 130) & (red < 40) & (blue < 40)),
        ("outline of the reference", (blue > 180) & (green > 140) & (red < 140)),
    ):
        assert here.sum() > 50, name


@pytest.mark.slow
def test_a_picture_of_twelve_megapixels_takes_less_than_4_gb_in_all(plan, tmp_path):
    command, where = plan
    assert main([*command, "--encoder-weights", "none"]) == 0
    assert main(["train", *where, "--iters", "0", "--device", "cpu"]) == 0
    (tmp_path / "in").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((4000, 3000)).save(tmp_path / "in" / "wide.png")
    boxes = {"wide": [[100, 200, 3000, 2000]]}
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    given = [
        "-i",
        str(tmp_path / "in"),
        "-o",
        str(tmp_path / "out"),
        "--prompts",
        str(tmp_path / "boxes.json"),
    ]
    command = [sys.executable, "-c", MEASURED, "predict", *where, *given, "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    with Image.open(tmp_path / "out" / "wide.png") as found:
        assert found.size == (4000, 3000)
    assert int(done.stdout.split("peak")[1]) < 3e9
