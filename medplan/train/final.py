"""What follows training: the validation cases on their own grids, with the same code as any prediction."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

from medplan.data.dataset import open_dataset
from medplan.data.images import read_label
from medplan.data.rawcase import RawCase
from medplan.errors import MedplanError
from medplan.evaluate.run import evaluate_pairs
from medplan.plan.schema import DatasetPlan, Fold, Plan
from medplan.predict import postprocess
from medplan.predict.model import Model, Options
from medplan.progress import track
from medplan.runtime import Runtime

__all__ = ["evaluate_run"]

logger = logging.getLogger(__name__)


def evaluate_run(
    folder: Path, plan: Plan, fold: Fold, *, raw_folder: Callable[[str], Path], runtime: Runtime
) -> list[Path]:
    """Predict and evaluate the validation cases of a trained fold, with its best and its last checkpoint.

    Also decides the post-processing, with the best checkpoint, and writes it beside the fold's checkpoints.
    Where the raw dataset is not on this machine nothing is evaluated, and that is said.

    Args:
        folder: of the fold; gets ``validation/<checkpoint>/``, one folder deeper for several datasets.
        raw_folder: where a raw dataset lies, by name.

    Returns: the summaries that were written; none without validation cases.
    """
    summaries = []
    for dataset in plan.learned:
        validation = dataset.roles(fold).get("validation", ())
        try:
            cases = open_dataset(raw_folder(dataset.name)).cases if validation else ()
        except MedplanError as error:
            logger.warning("The validation cases of '%s' stay unevaluated: %s", dataset.name, error)
            continue
        chosen = tuple(case for case in cases if case.id in validation and case.label is not None)
        for checkpoint in ("best", "last") if chosen else ():
            target = folder / "validation" / checkpoint
            target = target / dataset.name if len(plan.learned) > 1 else target
            model = Model.load(
                folder, checkpoint=checkpoint, device=str(runtime.device), dataset=dataset.name
            )
            pairs = list(_predict(model, chosen, dataset, target))
            if checkpoint == "best" and len(plan.learned) == 1:
                maps = ((read_label(predicted)[0], read_label(truth)[0]) for _, predicted, truth in pairs)
                postprocess.write(postprocess.decide(maps, dataset.labels), folder)
            prompts = Options().prompt if model.takes_prompts else None
            evaluate_pairs(pairs, dataset.labels, output=target, prompts=prompts)
            summaries.append(target / "summary.json")
    return summaries


def _predict(
    model: Model, cases: tuple[RawCase, ...], dataset: DatasetPlan, target: Path
) -> Iterator[tuple[str, Path, Path]]:
    """Yield id, prediction and reference of each case; predictions are those before post-processing."""
    for case in track(cases, label=f"validation of {dataset.name}", total=len(cases)):
        assert case.label is not None
        output = target / f"{case.id}{dataset.file_ending}"
        model.predict_file(case.images, output=output, options=Options(postprocessing=False))
        yield case.id, output, case.label
