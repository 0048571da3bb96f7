"""Verbs about raw data: convert, datasets, fingerprint."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medplan.errors import DataError, UsageError
from medplan.workspace import Workspace

if TYPE_CHECKING:
    from medplan.plan.fingerprint import Fingerprint

__all__ = ["convert", "datasets", "fingerprint"]

MAX_NAMES = 12
MAX_NOTES = 10
"""That are shown of what is worth knowing about a dataset."""


def convert(*, name: str, source: Path, target: Path | None, workspace: Path | None) -> None:
    """Turn a data set as published into a raw dataset."""
    from dataset_conversion import find
    from medplan.data.dataset import open_dataset

    converter = find(name)
    if not source.is_dir():
        advice = "unpack it, and name" if source.is_file() else "name"
        raise UsageError(
            f"--source: '{source}' is no folder; {advice} the folder of the scans or the data set."
        )
    folder = target or Workspace.open(workspace).raw_data / converter.CARD.name
    converter.convert(source, folder)
    dataset = open_dataset(folder)
    labelled = sum(case.is_labelled for case in dataset.cases)
    print(f"Raw dataset: {folder} ({len(dataset.cases)} training cases, {labelled} of them labelled)")
    print(f"  channels: {', '.join(dataset.channels)}")
    names = dataset.labels.names
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    print(f"  classes: {', '.join(names[:MAX_NAMES]) or 'none, since nothing is labelled'}{more}")
    print("  other names may be written into its dataset.json; they stay when it is converted again")


def datasets(*, workspace: Path | None) -> None:
    """List the converters and the datasets of the workspace."""
    from dataset_conversion import find, names

    space = Workspace.open(workspace)
    folders = space.raw_folders()
    print("Datasets:")
    print("\n".join(f"  {folder}" for folder in folders) or f"  none yet in {space.raw_data}")
    print("\nConverters ('medplan convert NAME --source FOLDER'):")
    for name in names():
        print(f"  {name:<18} {find(name).CARD.title}")


def fingerprint(
    *, datasets: Sequence[str], check: bool, repair: Path | None, workers: int | None, workspace: Path | None
) -> None:
    """Measure datasets, or check or repair their files."""
    space = Workspace.open(workspace)
    if repair is not None and len(datasets) != 1:
        raise UsageError("--repair takes one dataset at a time.")
    for name in datasets:
        if check or repair is not None:
            _check(space, name, repair, workers=workers)
        else:
            extract(space, name, workers=workers)


def extract(space: Workspace, name: str, *, workers: int | None) -> "Fingerprint":
    """Write and return the fingerprint of a dataset."""
    from medplan.data.dataset import open_dataset
    from medplan.plan.fingerprint import extract
    from medplan.records import write_json

    dataset = open_dataset(space.raw_folder(name))
    path = space.fingerprint_path(space.dataset_name(name))
    facts = extract(dataset, cache=path.with_name("fingerprint_cache.json"), workers=workers)
    write_json(facts, path)
    print(f"Fingerprint: {path}")
    for note in facts.notes[:MAX_NOTES]:
        print(f"  {note}")
    if len(facts.notes) > MAX_NOTES:
        print(f"  and {len(facts.notes) - MAX_NOTES} more notes in that file")
    return facts


def _check(space: Workspace, name: str, target: Path | None, *, workers: int | None) -> None:
    """Report what is wrong with the files of a dataset, or write a corrected copy and report the rest."""
    from medplan.data.checks import check
    from medplan.data.dataset import open_dataset
    from medplan.data.repairs import repair

    dataset = open_dataset(space.raw_folder(name))
    findings = check(dataset, workers=workers) if target is None else repair(dataset, target)
    for finding in findings:
        print(finding.sentence)
    if target is not None:
        print(f"Corrected copy: {target}")
    errors = sum(finding.is_error for finding in findings)
    if errors and target is not None:
        raise DataError(f"The copy of '{dataset.name}' leaves out the cases with {errors} error(s) above.")
    if errors:
        raise DataError(f"'{dataset.name}' has {errors} error(s) that training would stop at; see above.")
    number = len(dataset.cases) + len(dataset.test_cases)
    print(f"'{dataset.name}': {number} cases checked, without errors.")
