"""Verbs about trained models: predict, export, install."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from medplan.commands.trained import Trained
from medplan.errors import UsageError
from medplan.workspace import Workspace

if TYPE_CHECKING:
    from medplan.predict.options import Options
    from medplan.runtime import Precision

__all__ = ["export", "install", "predict"]


def predict(
    *,
    trained: Trained,
    input: Path,
    output: Path,
    options: "Options",
    part: tuple[int, int] | None,
    probabilities: bool,
    extras: bool,
    separate_tasks: bool,
    prompts: Path | None,
    support: Sequence[str],
    dataset_labels: str | None,
    device: str,
    precision: "Precision",
    workspace: Path | None,
) -> None:
    """Segment images."""
    from medplan.data.formats import ending_of
    from medplan.data.images import label_file
    from medplan.data.inputs import find_inputs
    from medplan.predict.model import Model
    from medplan.predict.run import predict as run_prediction

    space = Workspace.open(workspace)
    source = trained.find(space)
    load = partial(
        Model.load,
        source,
        folds=trained.fold_numbers,
        checkpoint=trained.checkpoint,
        device=device,
        precision=precision,
        dataset=dataset_labels,
        classes=options.classes,
    )
    loaded = load()
    if support and set(support) <= set(loaded.support_ids):
        loaded = load(support=support)
    elif support:
        from medplan.predict.support import find_examples

        loaded = loaded.with_support(
            find_examples(support, dataset=loaded.dataset.name, raw_folder=space.raw_folder)
        )
    folds = ", ".join(str(fold) for fold in loaded.folds)
    print(f"Model: {source} (fold{'s'[: len(loaded.folds) > 1]} {folds}, {trained.checkpoint})", flush=True)
    cases = find_inputs(input, len(loaded.dataset.channels), loaded.dataset.file_ending)
    if ending_of(output) and not output.is_dir():
        if probabilities or extras or separate_tasks or part or prompts is not None:
            raise UsageError(f"-o {output} names one file; these flags need a folder for their files.")
        if len(cases) > 1:
            raise UsageError(
                f"-o {output} names one file, but {input} holds {len(cases)} scans; name a folder."
            )
        written = label_file(output)
        if written.resolve() in {image.resolve() for image in cases[0].images}:
            raise UsageError(f"-o {output}: the label map would overwrite its image.")
        written.parent.mkdir(parents=True, exist_ok=True)
        loaded.predict_file(cases[0].images, output=written, options=options)
        print(f"Prediction: {written}")
        return
    if part is not None:
        number, count = part
        cases = cases[number - 1 :: count]
        if prompts is not None:
            raise UsageError("--part does not go with --prompts, whose boxes are those of all cases.")
        if not cases:
            print(f"Part {number} of {count} has no cases.")
            return
    run_prediction(
        cases,
        output,
        loaded,
        options=options,
        probabilities=probabilities,
        extras=extras,
        separate_tasks=separate_tasks,
        prompts=prompts,
    )
    print(f"Predictions: {output} ('medplan report -i {output}' shows them)")


def export(
    *,
    trained: Trained,
    output: Path,
    workspace: Path | None,
) -> None:
    """Pack a trained model into one zip."""
    from medplan.predict.archive import export

    source = trained.find(Workspace.open(workspace))
    packed = export(source, output, folds=trained.fold_numbers, checkpoint=trained.checkpoint)
    print(f"Packed {source}: {packed}")


def install(*, archive: Path, workspace: Path | None) -> None:
    """Unpack a model that 'export' packed."""
    from medplan.predict.archive import install

    print(f"Model: {install(archive, Workspace.open(workspace))}")
