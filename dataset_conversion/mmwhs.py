"""MMWHS: whole-heart structures in CT and MR."""

from pathlib import Path

from dataset_conversion.card import Card
from dataset_conversion.listing import by_pattern, folders_below, require
from dataset_conversion.writing import Case, write_dataset


def _scans(modality: str, *, test: bool) -> tuple[str, ...]:
    numbers = _TEST[modality] if test else tuple(n for n in range(1001, 1021) if n not in _TEST[modality])
    return tuple(f"{modality}_{number}" for number in numbers)


_TEST = {"mr": (1007, 1009, 1018, 1019), "ct": (1003, 1008, 1014, 1019)}
_VALUES = {0: 0, 205: 1, 420: 2, 421: 2, 500: 3, 820: 4, 550: 5, 600: 6, 850: 7}

CARD = Card(
    name="MMWHS",
    title="Multi-Modality Whole Heart Segmentation 2017",
    about="20 CT and 20 MR of the heart, of different patients, with seven structures.",
    modality="CT and MR",
    home="zmiclab.github.io/zxh/0/mmwhs",
    licence="research use, on request from the challenge",
    layout=(
        "ct_train/ and mr_train/ with {ct,mr}_train_1001_image.nii.gz and _label.nii.gz, and ct_test/, "
        "mr_test/, in one folder or in any folders below; label values 205 myocardium, 420 (in places 421) "
        "left atrium, 500 left ventricle, 820 aorta, 550 right atrium, 600 right ventricle, 850 pulmonary "
        "artery become 1 to 7; any other value is an error",
    ),
    channels=("MR or CT",),
    labels={
        "myocardium": 1,
        "left atrium": 2,
        "left ventricle": 3,
        "ascending aorta": 4,
        "right atrium": 5,
        "right ventricle": 6,
        "pulmonary artery": 7,
    },
    num_cases="20 CT and 20 MR with labels, 40 + 40 for testing",
    serves=("sdmessenger",),
    split=(
        "By scan, the modality is the `domain`. In the published splits three of the 16 unlabelled target "
        "scans served for validation; which ones is not published."
    ),
    published_splits={
        "mr_to_ct": {
            "labelled": _scans("mr", test=False),
            "unlabelled": _scans("ct", test=False),
            "test": _scans("ct", test=True),
        },
        "ct_to_mr": {
            "labelled": _scans("ct", test=False),
            "unlabelled": _scans("mr", test=False),
            "test": _scans("mr", test=True),
        },
    },
    label_groups=("mmwhs4",),
)


def convert(source: Path, target: Path) -> None:
    """Take the images as they are; labels are numbered 1 to 7."""
    cases: list[Case] = []
    for folder in folders_below(source):
        for modality in ("ct", "mr"):
            for part in ("train", "test"):
                name = rf"{modality}_{part}_(\d+)"
                labels = by_pattern(folder, name + r"_label\.nii(?:\.gz)?")
                for number, image in by_pattern(folder, name + r"_image\.nii(?:\.gz)?").items():
                    case = Case(
                        id=f"{modality}_{number}",
                        images=(image,),
                        label=labels.get(number),
                        values=_VALUES,
                        domain=modality.upper(),
                        is_test=part == "test",
                    )
                    cases.append(case)
    require(source, bool(cases), "ct_train/ and mr_train/ with {ct,mr}_train_1001_image.nii.gz")
    write_dataset(CARD, cases, target, source=source)
