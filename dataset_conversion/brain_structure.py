"""Brain structure: grey matter, white matter and fluid in T1 MR (DLBS, SALD, IXI)."""

import re
from functools import partial
from pathlib import Path

import numpy as np

from dataset_conversion.card import Card
from dataset_conversion.listing import by_pattern, require
from dataset_conversion.volumes import Volume, read_nifti
from dataset_conversion.writing import Case, write_dataset
from medplan.errors import DataError

CARD = Card(
    name="BrainStructure",
    title="Brain tissue of healthy adults (DLBS, SALD, IXI) with tissue probabilities",
    about="T1 MR of the brain with maps of the probability of three tissues.",
    modality="MR (T1)",
    home="fcon_1000.projects.nitrc.org",
    licence="of the three parts, not stated together",
    layout=(
        "train/, valid/ and test/, each with image/<id>_img.nii and mask/<id>_probmask_graymatter.nii, "
        "_whitematter.nii and _csf.nii; a voxel gets the most probable tissue, background where all three "
        "are 0",
    ),
    channels=("T1 MR",),
    labels={"grey matter": 1, "white matter": 2, "cerebrospinal fluid": 3},
    num_cases="172 in Hermes' released list",
    serves=("hermes",),
    split=(
        "By person. train/ and valid/ become training cases, test/ test cases; the source (dlbs, sald, ixi) "
        "is the `domain`."
    ),
)

_TISSUES = ("graymatter", "whitematter", "csf")


def convert(source: Path, target: Path) -> None:
    """Take the images as they are and turn the probability maps into labels."""
    cases: list[Case] = []
    roles: dict[str, tuple[str, ...]] = {}
    for role, part in (("labelled", "train"), ("validation", "valid"), ("test", "test")):
        images = by_pattern(source / part / "image", r"(.+)_img\.nii(?:\.gz)?")
        for key, image in images.items():
            maps = tuple(_map(source / part / "mask", key, tissue) for tissue in _TISSUES)
            origin = re.search(r"dlbs|sald|ixi", key.lower())
            label = partial(_most_probable, maps)
            domain = origin[0] if origin else None
            cases.append(Case(id=key, images=(image,), label=label, domain=domain, is_test=role == "test"))
        if images:
            roles[role] = tuple(images)
    require(source, bool(cases), "train/image/<id>_img.nii and train/mask/<id>_probmask_graymatter.nii")
    write_dataset(CARD, cases, target, source=source, splits={"published": roles})


def _map(folder: Path, key: str, tissue: str) -> Path:
    for path in (folder / f"{key}_probmask_{tissue}.nii", folder / f"{key}_probmask_{tissue}.nii.gz"):
        if path.is_file():
            return path
    raise DataError(
        f"{folder}: expected '{key}_probmask_{tissue}.nii' for the image '{key}_img'; complete the download."
    )


def _most_probable(maps: tuple[Path, ...]) -> Volume:
    volumes = [read_nifti(path) for path in maps]
    shapes = {volume.voxels.shape for volume in volumes}
    if len(shapes) > 1:
        raise DataError(
            f"{maps[0]}: the three probability maps differ in shape, {sorted(shapes)}; fetch them again."
        )
    tissues = np.stack([volume.voxels for volume in volumes])
    label = np.where((tissues > 0).any(axis=0), tissues.argmax(axis=0) + 1, 0).astype(np.uint8)
    return Volume(voxels=label, affine=volumes[0].affine)
