"""SegTHOR: organs at risk in the thorax in CT."""

from pathlib import Path

from dataset_conversion.card import Card
from dataset_conversion.listing import by_pattern, folders_of, require
from dataset_conversion.writing import Case, write_dataset

CARD = Card(
    name="SegTHOR",
    title="Segmentation of Thoracic Organs at Risk",
    about="Chest CT of patients with lung or oesophageal cancer.",
    modality="CT",
    home="competitions.codalab.org/competitions/21145",
    licence="research use, on registration",
    layout=("train/Patient_XX/Patient_XX.nii.gz and GT.nii.gz, and test/Patient_XX.nii.gz",),
    channels=("CT",),
    labels={"oesophagus": 1, "heart": 2, "trachea": 3, "aorta": 4},
    num_cases="40 with labels, 20 for testing without",
    serves=("hermes",),
    split="By patient, one scan each.",
)


def convert(source: Path, target: Path) -> None:
    """Take images and labels as they are, under nnU-Net's names."""
    cases: list[Case] = []
    for folder in (*folders_of(source / "train"), *folders_of(source)):
        image, label = folder / f"{folder.name}.nii.gz", folder / "GT.nii.gz"
        if image.is_file():
            require(folder, label.is_file(), "GT.nii.gz beside the scan")
            cases.append(Case(id=folder.name, images=(image,), label=label))
    require(source, bool(cases), "train/Patient_XX/Patient_XX.nii.gz and GT.nii.gz")
    tests = by_pattern(source / "test", r"(Patient_\d+)\.nii(?:\.gz)?")
    cases += [Case(id=key, images=(path,), is_test=True) for key, path in tests.items()]
    write_dataset(CARD, cases, target, source=source)
