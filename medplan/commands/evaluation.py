"""Verbs about scores: evaluate, report."""

import json
import logging
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from medplan.commands.trained import Trained, read_plan
from medplan.errors import MedplanError, UsageError
from medplan.machine import cores
from medplan.workspace import Workspace

if TYPE_CHECKING:
    from medplan.data.labels import LabelSpace
    from medplan.evaluate.report import Evaluation
    from medplan.evaluate.summary import Summary

__all__ = ["evaluate", "report"]


def evaluate(
    *,
    input: Path,
    reference: Path,
    output: Path | None,
    dataset: str | None,
    tolerance_mm: float,
    surface: bool,
    allow_missing: bool,
    workers: int | None,
    workspace: Path | None,
) -> None:
    """Compare predictions with references."""
    from medplan.evaluate.run import evaluate as score_all
    from medplan.evaluate.sections import counted

    summary = score_all(
        input,
        reference,
        _labels(input, dataset, workspace),
        output=output,
        workers=workers or cores(),
        surface=surface,
        tolerance_mm=tolerance_mm,
        allow_missing=allow_missing,
    )
    for name, dice in zip(summary.class_names, summary.class_mean("dice"), strict=True):
        print(f"  {name:<24} Dice {dice:.4f}")
    print(f"Mean foreground Dice {summary.mean():.4f} over {counted(len(summary.cases), 'case')}")
    for name, figure in summary.figures().items():
        print(f"  {name.replace('_', ' '):<24} {figure.mean:.4g}")
    if summary.prompts is not None:
        print(f"Prompts: {summary.prompts}")
    print(f"Summary: {(output or input) / 'summary.json'}")


def report(
    *,
    trained: Trained,
    input: Path | None,
    images: Path | None,
    output: Path | None,
    workspace: Path | None,
) -> None:
    """Write one HTML page about a run."""
    from medplan.evaluate.report import Evaluation, write_report
    from medplan.evaluate.summary import read_summary
    from medplan.predict.folder import find_folds

    space = Workspace.open(workspace)
    if input is not None and not (input / "summary.json").is_file():
        print(f"Report: {_previews(space, input, images, output)}")
        return
    source = trained.find(space)
    if not source.is_dir():
        raise UsageError(f"'{source}' is not a run folder; a report needs the log of the training.")
    fold_folders = find_folds(source, folds=trained.fold_numbers, checkpoint=trained.checkpoint)
    if input is not None:
        summary = read_summary(input / "summary.json")
        shown = _predicted_from(input)
        if images is not None:
            shown = _images(images, summary, read_plan(source).num_channels)
        evaluations = [Evaluation(name=input.name, summary=summary, images=shown)]
    else:
        datasets = [dataset.name for dataset in read_plan(source).learned]
        evaluations = [
            evaluation
            for fold in fold_folders
            for evaluation in _validation(space, fold.folder, datasets, trained.checkpoint)
        ]
        evaluations = [*_over_folds(evaluations), *evaluations]
    page = write_report(fold_folders[0].folder, output or source / "report.html", evaluations=evaluations)
    print(f"Report: {page}")


def _over_folds(evaluations: Sequence["Evaluation"]) -> list["Evaluation"]:
    """Return the folds that were evaluated alike as one, which is what a cross-validation reports."""
    from medplan.evaluate.report import Evaluation
    from medplan.evaluate.summary import joined

    groups: dict[str, list[Evaluation]] = {}
    for each in evaluations:
        groups.setdefault(each.group, []).append(each)
    found = []
    for group in groups.values():
        summary = joined([each.summary for each in group]) if len(group) > 1 else None
        if summary is not None:
            images = {case: paths for each in group for case, paths in each.images.items()}
            what = group[0].name.partition(", ")[2]
            found.append(Evaluation(name=f"{len(group)} folds, {what}", summary=summary, images=images))
    return found


def _validation(
    space: Workspace, folder: Path, datasets: Sequence[str], checkpoint: str
) -> list["Evaluation"]:
    """Return the validation of a fold: the chosen checkpoint first, then the other."""
    from medplan.data.dataset import open_dataset
    from medplan.evaluate.report import Evaluation
    from medplan.evaluate.summary import read_summary
    from medplan.predict.folder import CHECKPOINTS

    found = []
    for name, dataset in product(sorted(CHECKPOINTS, key=lambda name: name != checkpoint), datasets):
        written = folder / "validation" / name
        path = (written / dataset if len(datasets) > 1 else written) / "summary.json"
        if not path.is_file():
            continue
        try:
            cases = open_dataset(space.raw_folder(dataset)).cases
        except MedplanError:  # scores are shown without images then
            cases = ()
        found.append(
            Evaluation(
                name=", ".join(
                    [folder.name, *([dataset] if len(datasets) > 1 else []), f"{name} checkpoint"]
                ),
                summary=read_summary(path),
                images={case.id: case.images for case in cases},
                group=f"{dataset}, {name} checkpoint",
            )
        )
    return found


def _previews(space: Workspace, input: Path, images: Path | None, output: Path | None) -> Path:
    """Show predictions that were not evaluated."""
    from medplan.data.dataset import open_dataset
    from medplan.data.description import read_description
    from medplan.data.inputs import find_inputs
    from medplan.evaluate.previews import write_previews
    from medplan.evaluate.run import label_files

    found = label_files(input)
    known: dict[str, tuple[Path, ...]] = {}
    if not (input / "dataset.json").is_file():
        raise UsageError(f"{input} holds neither a summary.json nor the dataset.json that 'predict' writes.")
    description = read_description(input)
    if images is not None:
        known = {case.id: case.images for case in find_inputs(images, len(description.channels))}
    else:
        try:
            name = json.loads((input / "dataset.json").read_text()).get("name", "")
            dataset = open_dataset(space.raw_folder(name))
            known = {case.id: case.images for case in (*dataset.cases, *dataset.test_cases)}
        except MedplanError:
            logging.getLogger(__name__).debug("The dataset of %s is not here.", input)
        known |= _predicted_from(input)
    return write_previews(
        found,
        output or input / "report.html",
        images=known,
        labels=description.labels,
        title=input.resolve().name,
    )


def _predicted_from(folder: Path) -> dict[str, tuple[Path, ...]]:
    """Return, by case, the images that 'predict' noted beside its label maps and that are still there."""
    from medplan.predict.outputs import read_outputs

    noted = {case: tuple(map(Path, output.images)) for case, output in read_outputs(folder).items()}
    return {case: paths for case, paths in noted.items() if paths and all(path.exists() for path in paths)}


def _images(folder: Path, summary: "Summary", num_channels: int) -> dict[str, tuple[Path, ...]]:
    """Return the images of the cases of a summary."""
    from medplan.data.inputs import find_inputs

    names = {case.id for case in summary.cases}
    return {case.id: case.images for case in find_inputs(folder, num_channels) if case.id in names}


def _labels(predictions: Path, dataset: str | None, workspace: Path | None) -> "LabelSpace":
    """Return what the label values mean: as the dataset says, else as the predictions' own note."""
    from medplan.data.description import read_description

    if dataset is not None:
        return read_description(Workspace.open(workspace).raw_folder(dataset)).labels
    folder = predictions if predictions.is_dir() else predictions.parent
    if not predictions.exists():
        raise UsageError(f"There is no folder or file '{predictions}' (-i).")
    if not (folder / "dataset.json").is_file():
        raise UsageError(f"{folder} does not say what its label values mean; name the dataset with -d.")
    return read_description(folder).labels
