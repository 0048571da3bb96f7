"""Evaluate a folder of predictions against a folder of references."""

import json
import logging
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from medplan.data.checks import differences
from medplan.data.formats import IMAGE_ENDINGS, ending_of, stem_of
from medplan.data.geometry import Geometry
from medplan.data.images import read_label
from medplan.data.labels import LabelSpace
from medplan.errors import DataError, did_you_mean
from medplan.evaluate.metrics import score_case
from medplan.evaluate.summary import CaseScores, Summary, class_keys, write_summary
from medplan.predict.outputs import read_outputs
from medplan.progress import track

__all__ = ["evaluate", "evaluate_pairs", "pair_up"]

logger = logging.getLogger(__name__)

EXTRAS = "_extras.json"
ORIGIN_TOLERANCE, DIRECTION_TOLERANCE = 0.1, 1e-2
"""See `differences`; wider than for a dataset, since other programs write predictions too."""


def evaluate(
    predictions: Path,
    references: Path,
    labels: LabelSpace,
    *,
    output: Path | None = None,
    workers: int = 1,
    surface: bool = True,
    tolerance_mm: float = 2.0,
    allow_missing: bool = False,
) -> Summary:
    """Score every prediction that has a reference, and write ``summary.json`` and ``metrics.csv``.

    Figures that lie beside a prediction (``CASE_extras.json``, from ``predict --extras``) are taken along.

    Args:
        predictions: folder of label files, or one label file.
        references: the same; files are matched by case id, their endings may differ.
        labels: what the raw values mean.
        output: folder for the two files; the folder of the predictions by default.
        workers: threads, one case each.
        surface: also measure HD95, ASSD and NSD.
        tolerance_mm: of NSD (pictures: in pixels).
        allow_missing: leave references without a prediction out, rather than stop.

    Raises: DataError for missing predictions, grids that differ, unreadable files, undeclared label values.
    """
    pairs, missing = pair_up(predictions, references, allow_missing=allow_missing)
    return evaluate_pairs(
        pairs,
        labels,
        output=output or (predictions if predictions.is_dir() else predictions.parent),
        workers=workers,
        surface=surface,
        tolerance_mm=tolerance_mm,
        missing=missing,
        prompts=_prompts_of(predictions),
    )


def evaluate_pairs(
    pairs: Sequence[tuple[str, Path, Path]],
    labels: LabelSpace,
    *,
    output: Path,
    workers: int = 1,
    surface: bool = True,
    tolerance_mm: float = 2.0,
    missing: tuple[str, ...] = (),
    prompts: str | None = None,
) -> Summary:
    """Score (id, prediction, reference) triples and write ``summary.json`` and ``metrics.csv`` into `output`.

    Args:
        missing: ids of references without a prediction, for the record.
        prompts: what the predictions were prompted with, for the record.

    Raises: as `evaluate`.
    """

    def score(pair: tuple[str, Path, Path]) -> tuple[CaseScores, bool]:
        case, predicted, truth = pair
        prediction, predicted_grid = read_label(predicted)
        reference, true_grid = read_label(truth)
        _expect_one_grid(case, (predicted, predicted_grid), (truth, true_grid))
        scores = score_case(
            prediction, reference, labels=labels, spacing_mm=true_grid.spacing_mm, surface=surface,
            tolerance_mm=tolerance_mm, names=(f"{predicted}", f"{truth}"),
        )  # fmt: skip
        figures = _figures_of(predicted)
        done = CaseScores(id=case, prediction=predicted, reference=truth, scores=scores, figures=figures)
        return done, true_grid.spacing_mm is None

    with ThreadPoolExecutor(max_workers=max(workers, 1)) as pool:
        results = list(track(pool.map(score, pairs), label="evaluation", total=len(pairs)))
    without_spacing = sum(is_picture for _, is_picture in results)
    if 0 < without_spacing < len(results):
        raise DataError(
            f"{pairs[0][2].parent}: {without_spacing} of {len(results)} references are pictures without a "
            "spacing and the others have one in mm; evaluate them separately."
        )
    summary = Summary(
        class_names=labels.names, class_keys=class_keys(labels), cases=tuple(case for case, _ in results),
        unit="px" if without_spacing else "mm", tolerance=tolerance_mm, surface=surface, missing=missing,
        prompts=prompts,
    )  # fmt: skip
    write_summary(summary, output)
    return summary


def pair_up(
    predictions: Path, references: Path, *, allow_missing: bool = False
) -> tuple[tuple[tuple[str, Path, Path], ...], tuple[str, ...]]:
    """Match predictions with references by case id.

    Returns: (id, prediction, reference) sorted by id, and the ids of references without a prediction.
    Raises: DataError if predictions are missing (unless allowed), or nothing matches.
    """
    predicted, true = label_files(predictions), label_files(references)
    if predictions.is_file() and references.is_file():
        predicted = {next(iter(true)): predictions}
    missing, surplus = sorted(true.keys() - predicted.keys()), sorted(predicted.keys() - true.keys())
    common = sorted(true.keys() & predicted.keys())
    if not common:
        hint = did_you_mean(surplus[0], missing)
        raise DataError(
            f"{predictions}: none of its {len(predicted)} label files, such as '{surplus[0]}', "
            f"has a namesake among the {len(true)} of {references}{hint}. Give both the same names; "
            "the endings may differ."
        )
    if missing and not allow_missing:
        raise DataError(
            f"{predictions}: {len(missing)} of {len(true)} references have no prediction "
            f"({_listed(missing)}). Predict them, or leave them out with --allow-missing."
        )
    if missing:
        logger.warning(
            "%d references have no prediction and are left out: %s.", len(missing), _listed(missing)
        )
    if surplus:
        logger.warning(
            "%d predictions have no reference and are left out: %s.", len(surplus), _listed(surplus)
        )
    return tuple((case, predicted[case], true[case]) for case in common), tuple(missing)


def _figures_of(prediction: Path) -> dict[str, float]:
    """Return the numbers in ``CASE_extras.json`` beside a prediction; empty if there is no such file.

    Raises: DataError if it does not hold an object of JSON.
    """
    path = prediction.with_name(stem_of(prediction) + EXTRAS)
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text()).items()
    except (ValueError, AttributeError):
        raise DataError(f"{path}: does not hold figures by name; predict again with --extras.") from None
    return {
        name: float(value)
        for name, value in found
        if isinstance(value, (int, float)) and math.isfinite(value)
    }


def _prompts_of(predictions: Path) -> str | None:
    """Return what the note beside the predictions says that they were prompted with."""
    folder = predictions if predictions.is_dir() else predictions.parent
    try:
        note = json.loads((folder / "dataset.json").read_text())
    except (OSError, ValueError):
        return None
    found = note.get("prompts") if isinstance(note, dict) else None
    return found if isinstance(found, str) else None


def label_files(path: Path) -> dict[str, Path]:
    """Return the label files in a folder (or the one file) by case; what else lies there does not count.

    Raises: DataError if there are none, or two of one case.
    """
    if path.is_file():
        return {stem_of(path): path}
    if not path.is_dir():
        raise DataError(f"{path}: there is no such folder or file; name a folder of label files.")
    # What was written besides the segmentation, as flows and masks of single classes, is not to be scored.
    notes = read_outputs(path).items()
    besides = {name for case, output in notes for name in output.files if stem_of(name) != case}
    files: dict[str, Path] = {}
    for file in sorted(path.iterdir()):
        if not ending_of(file) or file.name[0] == "." or file.name in besides or not file.is_file():
            continue
        case = stem_of(file)
        if case in files:
            raise DataError(
                f"{path}: both '{files[case].name}' and '{file.name}' are case '{case}'; remove one."
            )
        files[case] = file
    if not files:
        raise DataError(f"{path}: there are no label files in it (looked for {', '.join(IMAGE_ENDINGS)}).")
    return files


def _expect_one_grid(case: str, predicted: tuple[Path, Geometry], true: tuple[Path, Geometry]) -> None:
    (file, found), (reference, expected) = predicted, true
    different = differences(found, expected, origin=ORIGIN_TOLERANCE, direction=DIRECTION_TOLERANCE)
    if different:
        what, values = next(iter(different.items()))
        raise DataError(
            f"case '{case}': prediction and reference lie on different grids, {what} {values}  "
            f"[{file}, {reference}]. Predict on the grid of the image that the reference was drawn on, "
            "or re-export one of them."
        )


def _listed(cases: Sequence[str]) -> str:
    return ", ".join(cases[:5]) + (f" and {len(cases) - 5} more" if len(cases) > 5 else "")
