"""LASeg: the left atrium in late gadolinium enhancement MR (2018 challenge)."""

from functools import partial
from pathlib import Path

from dataset_conversion.card import Card
from dataset_conversion.listing import folders_of, require
from dataset_conversion.volumes import Volume, affine_of, read_h5
from dataset_conversion.writing import Case, write_dataset

CARD = Card(
    name="LASeg",
    title="2018 Atrial Segmentation Challenge",
    about="3-D LGE MR of the heart at 0.625 mm isotropic with the left atrial cavity outlined.",
    modality="MR (LGE)",
    home="www.cardiacatlas.org",
    licence="research use, on request from the challenge",
    layout=(
        "as prepared for UA-MT: '2018LA_Seg_Training Set'/<id>/mri_norm2.h5 with `image` (z-scored, "
        "cropped) and `label`; nothing is stored about the grid, so 0.625 mm isotropic, first axis to the "
        "left, second to the back and third upwards are assumed",
        "the challenge's own: <id>/lgemri.nrrd and <id>/laendo.nrrd (0 and 255), also inside 'Training "
        "Set'/ and 'Testing Set'/",
    ),
    channels=("LGE MR",),
    labels={"left atrium": 1},
    num_cases=(
        "100 with public labels (80 for training and 20 for testing in the papers); 54 more for testing"
    ),
    serves=("sdmessenger", "hermes"),
    split="By case, one per patient. Papers label 4 of 80 (5 %) or 8 of 80 (10 %) and name no cases.",
)

_VALUES = {0: 0, 1: 1, 255: 1}


def convert(source: Path, target: Path) -> None:
    """Put .h5 arrays or .nrrd volumes into NIfTI; 255 becomes 1."""
    roots = [source, *folders_of(source)]
    folders = [(folder, root) for root in roots for folder in folders_of(root)]
    cases = []
    for folder, root in folders:
        packed, image, label = folder / "mri_norm2.h5", folder / "lgemri.nrrd", folder / "laendo.nrrd"
        is_test = root.name.lower().startswith("test")
        if packed.is_file():
            read = (partial(_read, packed, "image"), partial(_read, packed, "label"))
            cases.append(Case(id=folder.name, images=read[:1], label=read[1], is_test=is_test))
        elif image.is_file():
            known = label if label.is_file() else None
            cases.append(Case(id=folder.name, images=(image,), label=known, values=_VALUES, is_test=is_test))
    require(source, bool(cases), "folders <id>/ with mri_norm2.h5, or with lgemri.nrrd and laendo.nrrd")
    write_dataset(CARD, cases, target, source=source)


def _read(path: Path, key: str) -> Volume:
    return Volume(voxels=read_h5(path, key), affine=affine_of((0.625, 0.625, 0.625), axes="LPS"))
