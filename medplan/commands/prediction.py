"""Verbs about trained models: predict, export, install."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from medplan.errors import UsageError
from medplan.workspace import Workspace

if TYPE_CHECKING:
    from medplan.plan.schema import Fold

__all__ = ["export", "find_model", "install", "predict", "read_folds"]


def predict(
    *,
    input: Path,
    output: Path,
    model: Path | None,
    dataset: str | None,
    method: str | None,
    run: str | None,
    folds: Sequence[str] | None,
    checkpoint: Literal["best", "last"],
    step: float,
    mirror: bool,
    probabilities: bool,
    extras: bool,
    separate_tasks: bool,
    postprocessing: bool,
    prompts: Path | None,
    prompt_mode: Literal["auto", "none"],
    output_size: Sequence[int] | None,
    support: Sequence[str],
    tasks: Sequence[str],
    dataset_labels: str | None,
    modality: str | None,
    device: str,
    workspace: Path | None,
) -> None:
    """Segment images."""
    from medplan.predict.model import Model, Options
    from medplan.predict.run import predict as run_prediction

    space = Workspace.open(workspace)
    source = find_model(space, model, dataset, method, run)
    load = partial(
        Model.load,
        source,
        folds=read_folds(folds),
        checkpoint=checkpoint,
        device=device,
        dataset=dataset_labels,
        classes=tasks,
    )
    loaded = load()
    if support and set(support) <= set(loaded.support_ids):
        loaded = load(support=support)
    elif support:
        from medplan.predict.support import find_examples

        loaded = loaded.with_support(
            find_examples(support, dataset=loaded.dataset.name, raw_folder=space.raw_folder)
        )
    options = Options(
        step=step,
        mirror=mirror,
        postprocessing=postprocessing,
        classes=tuple(tasks),
        output_size=None if output_size is None else (output_size[0], output_size[1]),
        prompt=prompt_mode,
        modality=modality,
    )
    print(f"Model: {source}", flush=True)
    run_prediction(
        input,
        output,
        loaded,
        options=options,
        probabilities=probabilities,
        extras=extras,
        separate_tasks=separate_tasks,
        prompts=prompts,
    )
    print(f"Predictions: {output}")


def export(
    *,
    output: Path,
    model: Path | None,
    dataset: str | None,
    method: str | None,
    run: str | None,
    folds: Sequence[str] | None,
    checkpoint: Literal["best", "last"],
    workspace: Path | None,
) -> None:
    """Pack a trained model into one zip."""
    from medplan.predict.archive import export

    source = find_model(Workspace.open(workspace), model, dataset, method, run)
    print(f"Packed {source}: {export(source, output, folds=read_folds(folds), checkpoint=checkpoint)}")


def install(*, archive: Path, workspace: Path | None) -> None:
    """Unpack a model that 'export' packed."""
    from medplan.predict.archive import install

    print(f"Model: {install(archive, Workspace.open(workspace))}")


def read_folds(texts: Sequence[str] | None) -> tuple["Fold", ...] | None:
    """Return fold numbers, or 'all', as they were written on the command line."""
    from medplan.commands.training import read_fold

    return None if texts is None else tuple(read_fold(text) for text in texts)


def find_model(
    space: Workspace, model: Path | None, dataset: str | None, method: str | None, run: str | None
) -> Path:
    """Return the run folder (or zip) that was asked for: by path, or the last finished one that matches.

    Raises: UsageError if there is none, listing the runs there are.
    """
    if model is not None:
        return model
    wanted = (dataset and space.plan_name(dataset), method, run)
    pattern = "/".join(part or "*" for part in wanted)
    finished = sorted(
        (space.root / "results").glob(f"{pattern}/fold_*/best.pt"), key=lambda path: path.stat().st_mtime
    )
    if finished:
        return finished[-1].parents[1]
    others = sorted({str(path.parents[1]) for path in (space.root / "results").glob("*/*/*/fold_*/best.pt")})
    listed = f"There are: {', '.join(others)}" if others else "Nothing is trained there yet"
    raise UsageError(f"There is no trained model 'results/{pattern}' in {space.root}. {listed}.")
