"""What follows training: the validation cases on their own grids, with the same code as any prediction."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from medplan import checkpoint
from medplan.data.dataset import open_dataset
from medplan.data.images import read_label
from medplan.errors import MedplanError
from medplan.evaluate.run import evaluate_pairs
from medplan.machine import cores, host_memory
from medplan.plan.schema import Fold, Plan
from medplan.predict import postprocess
from medplan.predict.model import Model, Options
from medplan.predict.run import predict
from medplan.runtime import Runtime

__all__ = ["evaluate_run"]

logger = logging.getLogger(__name__)

BYTES_PER_CASE = 8 * 2**30


def evaluate_run(
    folder: Path, plan: Plan, fold: Fold, *, raw_folder: Callable[[str], Path], runtime: Runtime
) -> list[Path]:
    """Predict and evaluate the validation cases of a trained fold, with its best and its last checkpoint.

    The last one is left out where it is the best. Cases that were predicted before the command was
    interrupted are not predicted again. Also decides the post-processing, with the best checkpoint, and
    writes it beside the fold's checkpoints. Where the raw dataset, or a package to read it, is not on this
    machine nothing is evaluated, and that is said.

    Args:
        folder: of the fold; gets ``validation/<checkpoint>/``, one folder deeper for several datasets.
        raw_folder: where a raw dataset lies, by name.

    Returns: the summaries that were written; none without validation cases.
    """
    summaries = []
    checkpoints: list[Literal["best", "last"]] = ["best", "last"]
    if _step_of(folder / "best.pt") == _step_of(folder / "last.pt"):
        checkpoints.remove("last")
        shutil.rmtree(folder / "validation" / "last", ignore_errors=True)
    for dataset in plan.learned:
        validation = dataset.roles(fold).get("validation", ())
        try:
            cases = open_dataset(raw_folder(dataset.name)).cases if validation else ()
        except MedplanError as error:
            logger.warning("The validation cases of '%s' stay unevaluated: %s", dataset.name, error)
            continue
        chosen = [case for case in cases if case.id in validation and case.label is not None]
        for name in checkpoints if chosen else ():
            target = folder / "validation" / name
            target = target / dataset.name if len(plan.learned) > 1 else target
            model = Model.load(
                folder,
                checkpoint=name,
                device=str(runtime.device),
                precision=runtime.precision,
                dataset=dataset.name,
            )
            try:
                # Before post-processing, which is decided on these.
                predicted = predict(chosen, target, model, options=Options(postprocessing=False))
            except ImportError as error:
                logger.warning("The validation cases of '%s' stay unevaluated: %s.", dataset.name, error)
                continue
            pairs = [
                (case.id, path, case.label)
                for case, path in zip(chosen, predicted, strict=True)
                if case.label is not None
            ]
            if name == "best" and len(plan.learned) == 1:
                maps = ((read_label(path)[0], read_label(truth)[0]) for _, path, truth in pairs)
                postprocess.write(postprocess.decide(maps, dataset.labels), folder)
            prompts = Options().prompt if model.takes_prompts else None
            evaluate_pairs(pairs, dataset.labels, output=target, prompts=prompts, workers=_workers())
            summaries.append(target / "summary.json")
    return summaries


def _step_of(path: Path) -> int:
    return int(checkpoint.load(path)["step"])


def _workers() -> int:
    """Return how many cases may be scored at once: distances of a large one take some gigabytes."""
    free = host_memory()
    return max(1, min(4, cores() // 2, 4 if free is None else free // BYTES_PER_CASE))
