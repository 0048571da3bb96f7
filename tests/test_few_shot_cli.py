"""From raw data to a class that no label of the training showed, by the commands that a user types."""

import shutil

import numpy as np
import pytest

from medplan.cli import main
from medplan.data.images import read_geometry, read_label, write_label


@pytest.mark.slow
def test_a_new_class_is_segmented_from_a_case_or_from_two_files(raw_dataset, tmp_path, capsys):
    root = raw_dataset.parents[1]
    where = ["--workspace", str(root)]
    plan = ["plan_and_preprocess", "-d", "Phantom", "-m", "densemp", "--novel", "spleen", "--encoder", "tiny"]
    small = ["--patch-size", "32", "32", "--iters", "4", "--set", "config.shares=[0,1,1]"]
    # The phantom's organs lie in the same slices: without those of the novel one little would be left.
    smaller = ["--set", "datasets.0.extra.superpixels.min_size_mm2=150", "--set", "config.setting=1"]
    assert main([*plan, *small, *smaller, *where]) == 0
    assert main(["train", "-d", "Phantom", "-m", "densemp", "--device", "cpu", *where]) == 0
    run = root / "results" / "Phantom" / "densemp" / "default" / "fold_0"
    assert (run / "superpixel.pt").is_file()
    again = ["--run", "again", "--set", f"encoder_weights={run / 'superpixel.pt'}"]
    assert main(["train", "-d", "Phantom", "-m", "densemp", "--device", "cpu", *again, *where]) == 0
    scans, out = tmp_path / "in", tmp_path / "out"
    scans.mkdir()
    shutil.copy(raw_dataset / "imagesTr" / "case00_0000.nii.gz", scans)
    predict = ["predict", "-i", str(scans), "-d", "Phantom", "-m", "densemp", "--device", "cpu", *where]
    assert main([*predict, "-o", str(out / "case"), "--support", "case01", "--support", "case02"]) == 0
    label, geometry = read_label(out / "case" / "case00.nii.gz")
    assert geometry == read_geometry(raw_dataset / "imagesTr" / "case00_0000.nii.gz")
    assert set(np.unique(label)) <= {0, 1, 2}
    shown, grid = read_label(raw_dataset / "labelsTr" / "case01.nii.gz")
    pair = write_label(tmp_path / "organ.nii.gz", np.where(shown == 2, 7, 0).astype(np.uint8), grid)
    example = f"{raw_dataset / 'imagesTr' / 'case01_0000.nii.gz'}:{pair}"
    assert main([*predict, "-o", str(out / "pair"), "--support", example]) == 0
    assert set(np.unique(read_label(out / "pair" / "case00.nii.gz")[0])) <= {0, 7}
    assert '"label 7": 7' in (out / "pair" / "dataset.json").read_text()
    anywhere = [*predict, "-o", str(out / "anywhere"), "--support", example, "--anywhere"]
    assert main(anywhere) == 0 and (out / "anywhere" / "case00.nii.gz").is_file()
    capsys.readouterr()
    assert main([*predict, "-o", str(out / "none"), "--support", "case99"]) == 2
    assert "no case 'case99'" in capsys.readouterr().err
