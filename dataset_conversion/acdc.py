"""ACDC: ventricles and myocardium in cardiac cine MR."""

from functools import partial
from pathlib import Path

from dataset_conversion.card import Card
from dataset_conversion.listing import by_pattern, choose, files_of, folders_of, require
from dataset_conversion.volumes import Volume, affine_of, read_h5
from dataset_conversion.writing import Case, write_dataset

CARD = Card(
    name="ACDC",
    title="Automated Cardiac Diagnosis Challenge",
    about=(
        "Short-axis cine MR of 150 patients, the end-diastolic and end-systolic frame labelled; 5 to 10 mm "
        "slices."
    ),
    modality="MR (cine)",
    home="www.creatis.insa-lyon.fr/Challenge/acdc",
    licence="CC BY-NC-SA 4.0",
    layout=(
        "the challenge's own: patientXXX/patientXXX_frameYY.nii.gz and patientXXX_frameYY_gt.nii.gz, also "
        "inside training/ and testing/",
        "as prepared for WSL4MIS: ACDC_training_volumes/patientXXX_frameYY.h5 with `image` (0..1), `label` "
        "and `scribble` (not used); no grid is stored, so 10 x 1.5625 x 1.5625 mm (z, y, x) is assumed for "
        "all",
    ),
    channels=("cine MR",),
    labels={"right ventricle": 1, "myocardium": 2, "left ventricle": 3},
    num_cases="100 patients x 2 frames for training, 50 x 2 for testing",
    serves=("sdmessenger", "hermes"),
    split="By patient: the two frames of a patient stay together (`patient`).",
)

_FRAME = r"(patient\d{3}_frame\d{2})"


def convert(source: Path, target: Path) -> None:
    """Take the labelled frames as they are, or put .h5 arrays into NIfTI."""
    packed = by_pattern(choose(source, "ACDC_training_volumes") or source, _FRAME + r"\.h5")
    cases = [
        Case(
            id=key,
            images=(partial(_read, path, "image"),),
            label=partial(_read, path, "label"),
            patient=key.split("_")[0],
        )
        for key, path in packed.items()
    ]
    for root in (source, source / "training", source / "testing") if not packed else ():
        for folder in folders_of(root):
            for key, image in by_pattern(folder, _FRAME + r"\.nii(?:\.gz)?").items():
                label = next(
                    (path for path in files_of(folder) if path.name.startswith(f"{key}_gt.nii")), None
                )
                is_test = root.name == "testing"
                cases.append(Case(id=key, images=(image,), label=label, patient=folder.name, is_test=is_test))
    require(
        source,
        bool(cases),
        "patientXXX/patientXXX_frameYY.nii.gz, or ACDC_training_volumes/patientXXX_frameYY.h5",
    )
    write_dataset(CARD, cases, target, source=source)


def _read(path: Path, key: str) -> Volume:
    return Volume(voxels=read_h5(path, key).T, affine=affine_of((1.5625, 1.5625, 10.0), axes="LPS"))
