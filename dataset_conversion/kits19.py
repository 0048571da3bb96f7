"""KiTS19: kidneys and kidney tumours in CT."""

from pathlib import Path

from dataset_conversion.card import Card
from dataset_conversion.listing import choose, folders_of, require
from dataset_conversion.writing import Case, write_dataset

CARD = Card(
    name="KiTS19",
    title="Kidney Tumour Segmentation Challenge 2019",
    about=(
        "Late-arterial abdominal CT of patients before kidney surgery; the slice axis comes first in the "
        "files."
    ),
    modality="CT",
    home="kits19.grand-challenge.org",
    licence="CC BY-NC-SA 4.0",
    layout=("case_00NNN/imaging.nii.gz and segmentation.nii.gz, also inside data/ or kits19/data/",),
    channels=("CT",),
    labels={"kidney": 1, "tumour": 2},
    num_cases="210 with labels, 90 for testing without",
    serves=("hermes",),
    split="By case, one per patient.",
)


def convert(source: Path, target: Path) -> None:
    """Take images and labels as they are, the order of their axes included."""
    root = choose(source, "kits19/data", "data") or source
    cases: list[Case] = []
    for folder in folders_of(root):
        image, label = folder / "imaging.nii.gz", folder / "segmentation.nii.gz"
        if image.is_file():
            known = label if label.is_file() else None
            cases.append(Case(id=folder.name, images=(image,), label=known, is_test=known is None))
    require(
        root,
        bool(cases),
        ("case_00NNN/imaging.nii.gz and segmentation.nii.gz (fetch the images with KiTS19's script)"),
    )
    write_dataset(CARD, cases, target, source=source)
