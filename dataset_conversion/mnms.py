"""M&Ms: cardiac cine MR of four scanner vendors."""

import csv
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from dataset_conversion.card import Card
from dataset_conversion.listing import by_pattern, choose, files_of, folders_of, require
from dataset_conversion.volumes import Volume, read_nifti
from dataset_conversion.writing import Case, write_dataset
from medplan.errors import DataError

CARD = Card(
    name="MnMs",
    title="Multi-Centre, Multi-Vendor and Multi-Disease Cardiac Segmentation (M&Ms)",
    about=(
        "Short-axis cine MR of 345 patients, six hospitals, four vendors; the end-diastolic and "
        "end-systolic frame labelled."
    ),
    modality="MR (cine)",
    home="www.ub.edu/mnms",
    licence="CC BY-NC-SA 4.0",
    layout=(
        "Training/Labeled/, Training/Unlabeled/, Validation/ and Testing/, each with <id>/<id>_sa.nii.gz "
        "(4-D) and <id>_sa_gt.nii.gz, and the table *.csv with the columns 'External code', 'Vendor', 'ED' "
        "and 'ES'",
    ),
    channels=("cine MR",),
    labels={"left ventricle": 1, "myocardium": 2, "right ventricle": 3},
    num_cases="345 patients (320 with labels) x 2 frames",
    serves=("hermes", "sdmessenger"),
    split=(
        "By patient, the vendor (A 95, B 125, C 50, D 50 labelled patients) is the `domain`: all of one "
        "vendor are the test set. Of each other vendor the ceiling of 2 % or 5 % of its patients is labelled."
    ),
)

_FOLDERS = ("Training/Labeled", "Training/Unlabeled", "Validation", "Testing")


def convert(source: Path, target: Path) -> None:
    """Cut the labelled frames out of the 4-D files; of unlabelled patients the frames named in the table."""
    tables = [path for path in files_of(source) if path.suffix.lower() == ".csv"]
    require(
        source,
        len(tables) == 1,
        "one .csv table with the vendor of each patient, beside Training/ and Testing/",
    )
    table = _read_table(tables[0])
    cases: list[Case] = []
    for part in _FOLDERS:
        for folder in folders_of(choose(source, part) or source / part):
            image = by_pattern(folder, r"(.+)_sa\.nii(?:\.gz)?").get(folder.name)
            if image is None:
                continue
            if folder.name not in table:
                raise DataError(
                    f"{tables[0]}: has no row for '{folder.name}' of {part}/; fetch the table again."
                )
            label = by_pattern(folder, r"(.+)_sa_gt\.nii(?:\.gz)?").get(folder.name)
            cases += _frames(folder.name, image, label, table[folder.name])
    require(source, bool(cases), "Training/Labeled/<id>/<id>_sa.nii.gz and the like")
    write_dataset(CARD, cases, target, source=source)


def _read_table(path: Path) -> dict[str, Mapping[str, str]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    lacking = [name for name in ("External code", "Vendor", "ED", "ES") if not rows or name not in rows[0]]
    if lacking:
        raise DataError(
            f"{path}: expected a column '{lacking[0]}', found {', '.join(rows[0]) if rows else 'no rows'}."
        )
    return {row["External code"]: row for row in rows}


def _frames(patient: str, image: Path, label: Path | None, row: Mapping[str, str]) -> list[Case]:
    if label is None:
        frames = sorted({int(row["ED"]), int(row["ES"])})
    else:
        voxels = read_nifti(label).voxels
        frames = (
            [time for time in range(voxels.shape[3]) if voxels[..., time].any()] if voxels.ndim == 4 else []
        )
        if not frames:
            raise DataError(
                f"{label}: expected 4-D labels with at least one labelled frame, found {voxels.shape}."
            )
    return [
        Case(
            id=f"{patient}_frame{time:02d}",
            images=(partial(_frame, image, time),),
            label=partial(_frame, label, time) if label else None,
            domain=row["Vendor"],
            patient=patient,
        )
        for time in frames
    ]


def _frame(path: Path, time: int) -> Volume:
    volume = read_nifti(path)
    if volume.voxels.ndim != 4 or time >= volume.voxels.shape[3]:
        raise DataError(
            f"{path}: expected a 4-D image with a frame {time}, found shape {volume.voxels.shape}."
        )
    return Volume(voxels=volume.voxels[..., time], affine=volume.affine)
