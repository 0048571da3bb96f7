"""Verbs about raw data: convert, datasets, fingerprint."""

from collections.abc import Sequence
from pathlib import Path

from medplan.errors import DataError, UsageError
from medplan.workspace import Workspace

__all__ = ["convert", "datasets", "fingerprint"]


def convert(*, name: str, source: Path, target: Path | None, workspace: Path | None) -> None:
    """Turn a data set as published into a raw dataset."""
    from dataset_conversion import find

    converter = find(name)
    if not source.is_dir():
        raise UsageError(f"The source '{source}' is not a folder.")
    folder = target or Workspace.open(workspace).raw_data / converter.CARD.name
    converter.convert(source, folder)
    print(f"Raw dataset: {folder}")


def datasets(*, workspace: Path | None) -> None:
    """List the converters and the datasets of the workspace."""
    from dataset_conversion import find, names

    space = Workspace.open(workspace)
    folders = space.raw_folders()
    print(f"Datasets in {space.raw_data}:")
    print("\n".join(f"  {folder.name}" for folder in folders) or "  none yet")
    print("\nConverters ('medplan convert NAME --source FOLDER'):")
    for name in names():
        print(f"  {name:<18} {find(name).CARD.title}")


def fingerprint(
    *, datasets: Sequence[str], check: bool, repair: Path | None, workers: int | None, workspace: Path | None
) -> int:
    """Measure datasets, or check or repair their files."""
    space = Workspace.open(workspace)
    if repair is not None and len(datasets) != 1:
        raise UsageError("--repair takes one dataset at a time.")
    for name in datasets:
        if check or repair is not None:
            _check(space, name, repair)
        else:
            extract(space, name, workers=workers)
    return 0


def extract(space: Workspace, name: str, *, workers: int | None):  # type: ignore[no-untyped-def]
    """Write and return the fingerprint of a dataset."""
    from medplan.data.dataset import open_dataset
    from medplan.plan.fingerprint import extract
    from medplan.records import write_json

    dataset = open_dataset(space.raw_folder(name))
    path = space.fingerprint_path(space.dataset_name(name))
    facts = extract(dataset, cache=path.with_name("fingerprint_cache.json"), workers=workers)
    write_json(facts, path)
    print(f"Fingerprint: {path}")
    return facts


def _check(space: Workspace, name: str, target: Path | None) -> None:
    from medplan.data.checks import check
    from medplan.data.dataset import open_dataset
    from medplan.data.repairs import repair

    dataset = open_dataset(space.raw_folder(name))
    findings = check(dataset)
    for finding in findings:
        print(finding.sentence)
    errors = sum(finding.is_error for finding in findings)
    if target is not None:
        left = repair(dataset, target)
        print(f"Corrected copy: {target}")
        errors = len(left)
    if errors:
        raise DataError(
            f"'{dataset.name}' has {errors} problem(s) that training would stumble over; see above."
        )
    print(f"'{dataset.name}': {len(dataset.cases)} cases checked, nothing wrong that matters.")
