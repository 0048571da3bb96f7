"""Folders that nobody has put in order: several channels, and pictures."""

from pathlib import Path

from tests.conversion.pieces import GRIDS, Expected, Tree, blobs, masked_pictures, nifti, scan


def channels(root: Path) -> Tree:
    """Two visits of a patient and one of another two."""
    tree: Tree = {}
    for number, (patient, visit) in enumerate((("p1", "a"), ("p1", "b"), ("p2", "a"), ("p3", "a"))):
        voxels, affine = (scan(number), scan(number + 9)), GRIDS[number]
        folder = root / patient / visit
        for kind, each in zip(("T1", "flair"), voxels, strict=True):
            nifti(folder / f"{kind}.nii.gz", each, affine)
        label = blobs(number, [1, 2]) if number != 1 else None
        if label is not None:
            nifti(folder / "seg.nii.gz", label, affine)
        tree[f"{patient}_{visit}"] = Expected(voxels, label, affine, None, patient, is_open=True)
    return tree


def pictures(root: Path) -> Tree:
    return masked_pictures(root, ["7", "x"], "images/{}.jpg", "masks/{}_mask.png", is_open=True)
