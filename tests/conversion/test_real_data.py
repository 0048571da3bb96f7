"""The converters on the real sets in ``../shared/data``; only the quick ones."""

import json
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np

from dataset_conversion import find

Shared = Callable[[str], Path]


def converted(name: str, source: Path, target: Path) -> tuple[Path, dict[str, object]]:
    find(name).convert(source, target)
    return target, json.loads((target / "dataset.json").read_text())


def test_hippocampus_keeps_its_files(shared_data: Shared, tmp_path: Path) -> None:
    source = shared_data("msd_hippocampus")
    out, described = converted("hippocampus", source, tmp_path / "out")
    assert described["numTraining"] == 69
    name = "hippocampus_001"
    kept = (out / "imagesTr" / f"{name}_0000.nii.gz").read_bytes()
    assert kept == (source / "images" / f"{name}.nii.gz").read_bytes()


def test_sequences_of_the_heart_share_labels_and_patients(shared_data: Shared, tmp_path: Path) -> None:
    source = shared_data("mscmr_bssfp").parent
    shared_data("mscmr_lge")
    links = tmp_path / "source"
    links.mkdir()
    for part in ("mscmr_bssfp", "mscmr_lge"):
        (links / part).symlink_to(source / part)
    out, described = converted("mscmrseg", links, tmp_path / "out")
    assert described["numTraining"] == 10
    assert len(list((out / "imagesUnlabeled").iterdir())) == 4
    ventricle = {}
    for domain in ("bssfp", "lge"):
        label = nibabel.load(out / "labelsTr" / f"patient01_{domain}.nii.gz")
        volume = np.asanyarray(label.dataobj)
        assert set(np.unique(volume)) == {0, 1, 2, 3}
        millilitres = (volume == 3).sum() * np.prod(label.header.get_zooms()) / 1000
        direction = label.affine[:3, 2] / np.linalg.norm(label.affine[:3, 2])
        ventricle[domain] = (millilitres, direction)
    assert abs(ventricle["bssfp"][0] / ventricle["lge"][0] - 1) < 0.5
    np.testing.assert_allclose(ventricle["bssfp"][1], ventricle["lge"][1], atol=0.02)


def test_organs_lie_on_their_sides_in_ct_and_mr(shared_data: Shared, tmp_path: Path) -> None:
    """The header of the prepared CT turns front and back round; uncorrected, the spine would lie in front."""
    for name, folder, organs in (
        ("chaos", "chaos_mr_t2spir", {"liver": 1, "right kidney": 2, "left kidney": 3}),
        ("synapse", "synapse_sabs_ct", {"liver": 6, "right kidney": 2, "left kidney": 3}),
    ):
        source = tmp_path / folder
        (source / "nii").mkdir(parents=True)
        real = shared_data(folder)
        if name == "synapse":
            (source / "png").symlink_to(real / "png")
            (source / "nii" / "label_12.nii.gz").symlink_to(real / "nii" / "label_12.nii.gz")
        else:
            for kind in ("image", "label"):
                (source / f"{kind}_1.nii.gz").symlink_to(real / f"{kind}_1.nii.gz")
        out, _ = converted(name, source, tmp_path / name)
        label = nibabel.load(next((out / "labelsTr").iterdir()))
        voxels = np.asanyarray(label.dataobj)
        middle = {
            organ: nibabel.affines.apply_affine(label.affine, np.argwhere(voxels == value).mean(0))
            for organ, value in organs.items()
        }
        assert middle["right kidney"][0] > middle["left kidney"][0] + 50
        assert middle["liver"][0] > middle["left kidney"][0] + 50
        assert middle["liver"][1] > middle["right kidney"][1] + 20
        assert middle["liver"][2] > middle["right kidney"][2] + 10
