"""Scores of many cases: means, pooled Dice, confidence intervals, and the files they are kept in.

Two means are told apart everywhere: the *mean over cases* of a score (per class, then over classes), which
weighs every patient alike, and the *pooled* Dice of the voxels of all cases together, which weighs large
structures more.
"""

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medplan.data.labels import LabelSpace
from medplan.errors import DataError
from medplan.evaluate.metrics import ClassScore, Outcome
from medplan.records import write_json, write_text

__all__ = [
    "CSV_COLUMNS",
    "METRICS",
    "CaseScores",
    "Interval",
    "Summary",
    "across",
    "class_keys",
    "csv_rows",
    "interval_of",
    "joined",
    "read_summary",
    "write_summary",
]

METRICS = {
    "dice": "Dice", "iou": "IoU", "hd95": "HD95", "assd": "ASSD", "nsd": "NSD", "tp": "TP", "fp": "FP",
    "fn": "FN", "tn": "TN", "n_pred": "n_pred", "n_ref": "n_ref", "volume_pred_ml": "volume_pred_ml",
    "volume_ref_ml": "volume_ref_ml",
}  # fmt: skip
"""Attribute of a `ClassScore` -> its key in summary.json and metrics.csv, as nnU-Net has them."""

CSV_COLUMNS = ("case", "class", "label", "outcome", *METRICS.values())
COUNTS = ("tp", "fp", "fn", "tn", "n_pred", "n_ref")
RESAMPLES = 2000


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean with its 95 % confidence interval; the bounds are NaN when there is only one value."""

    mean: float
    low: float
    high: float
    count: int


@dataclass(frozen=True, kw_only=True)
class CaseScores:
    """One case: its id, the two files that were compared, and a score per class.

    `figures` are what the method said of the case besides (``CASE_extras.json``), by name.
    """

    id: str
    prediction: Path
    reference: Path
    scores: tuple[ClassScore, ...]
    figures: Mapping[str, float] = field(default_factory=dict)

    def mean(self, metric: str) -> float:
        """Mean of a score over the classes for which it is defined; NaN if there is none."""
        return _mean(getattr(score, metric) for score in self.scores)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The evaluation of a folder of predictions.

    Attributes:
        class_names: one per class.
        class_keys: what nnU-Net calls the classes: their raw value, or the tuple of them, as text.
        cases: sorted by id.
        unit: of distances; pictures have no spacing.
        tolerance: of the normalised surface distance, in `unit`.
        surface: whether surface distances were measured.
        missing: ids of references without a prediction, which no score includes.
        prompts: what the predictions were prompted with, where the method takes boxes.
    """

    class_names: tuple[str, ...]
    class_keys: tuple[str, ...]
    cases: tuple[CaseScores, ...]
    unit: str = "mm"
    tolerance: float = 2.0
    surface: bool = True
    missing: tuple[str, ...] = ()
    prompts: str | None = None

    def table(self, metric: str) -> npt.NDArray[np.float64]:
        """Return (cases, classes) values of a score, NaN where it is undefined."""
        rows = [[float(getattr(score, metric)) for score in case.scores] for case in self.cases]
        return np.asarray(rows, dtype=np.float64).reshape(len(self.cases), len(self.class_names))

    def class_mean(self, metric: str) -> npt.NDArray[np.float64]:
        """Return the mean over cases per class, NaN where no case defines it."""
        return np.asarray([_mean(column) for column in self.table(metric).T])

    def mean(self, metric: str = "dice") -> float:
        """Return the mean over classes of the mean over cases (nnU-Net's ``foreground_mean``)."""
        return _mean(self.class_mean(metric))

    def interval(self, metric: str = "dice") -> Interval:
        """Return `mean` with the 95 % percentile interval of a bootstrap over cases (2000 resamples).

        Source: Efron and Tibshirani 1993, chapter 13.
        """
        return interval_of(self.table(metric))

    def pooled_dice(self) -> npt.NDArray[np.float64]:
        """Return, per class, the Dice of the voxels of all cases together; NaN if the class never occurs."""
        tp, fp, fn = (self.table(name).sum(0) for name in ("tp", "fp", "fn"))
        either = 2 * tp + fp + fn
        pooled: npt.NDArray[np.float64] = np.divide(
            2 * tp, either, out=np.full(len(tp), np.nan), where=either > 0
        )
        return pooled

    def outcomes(self, outcome: Outcome) -> tuple[int, ...]:
        """Return, per class, the number of cases with that outcome."""
        return tuple(
            sum(case.scores[row].outcome == outcome for case in self.cases)
            for row in range(len(self.class_names))
        )

    def false_positive_ml(self) -> tuple[float, ...]:
        """Return, per class, the mean volume predicted in cases without the class; NaN without such cases."""
        volumes: list[float] = []
        for row in range(len(self.class_names)):
            without = [case.scores[row] for case in self.cases if case.scores[row].n_ref == 0]
            volumes.append(_mean(score.volume_pred_ml for score in without))
        return tuple(volumes)

    def figures(self) -> dict[str, Interval]:
        """Return, per figure that some case has, the mean with its interval over the cases that have it."""
        names = dict.fromkeys(name for case in self.cases for name in case.figures)
        result = {}
        for name in names:
            values = [case.figures.get(name, math.nan) for case in self.cases]
            result[name] = interval_of(np.asarray(values, dtype=np.float64)[:, None])
        return result

    def ranked(self) -> tuple[CaseScores, ...]:
        """Return the cases from the worst mean Dice to the best; cases without any class are left out."""
        scored = [case for case in self.cases if not math.isnan(case.mean("dice"))]
        return tuple(sorted(scored, key=lambda case: (case.mean("dice"), case.id)))


def joined(summaries: Sequence[Summary]) -> Summary | None:
    """Return the cases of several folds as one evaluation; None if a case is in two of them."""
    cases = sorted((case for summary in summaries for case in summary.cases), key=lambda case: case.id)
    if len({case.id for case in cases}) < len(cases):
        return None
    return replace(summaries[0], cases=tuple(cases), missing=tuple(m for s in summaries for m in s.missing))


def interval_of(table: npt.NDArray[np.float64]) -> Interval:
    """Return the mean over classes of the mean over cases of (cases, classes) values, with the interval of
    `Summary.interval`."""
    mean, low, high, count = _bootstrap(table)
    return Interval(mean=float(_mean(mean)), low=low, high=high, count=count)


def across(values: Sequence[float]) -> Interval:
    """Return the mean over folds or seeds with Student's 95 % interval.

    Folds share training cases, so the interval is somewhat too narrow (Nadeau and Bengio 2003).
    """
    known = np.asarray([value for value in values if not math.isnan(value)])
    if known.size < 2:
        return Interval(mean=_mean(known), low=math.nan, high=math.nan, count=known.size)
    from scipy.special import stdtrit

    half = float(stdtrit(known.size - 1, 0.975)) * float(known.std(ddof=1)) / math.sqrt(known.size)
    mean = float(known.mean())
    return Interval(mean=mean, low=mean - half, high=mean + half, count=known.size)


def class_keys(labels: LabelSpace) -> tuple[str, ...]:
    """Name classes as nnU-Net does in summary.json: the raw value, or the tuple of raw values."""
    return tuple(str(values[0]) if len(values) == 1 else str(tuple(values)) for values in labels.values)


def write_summary(summary: Summary, folder: Path) -> Path:
    """Write ``summary.json`` in nnU-Net's shape with further keys, and ``metrics.csv``; return the former.

    Where cases have figures, ``figures.csv`` holds them, a row per case.
    """
    write_text(_csv(summary), folder / "metrics.csv")
    if summary.figures():
        write_text(_figures_csv(summary), folder / "figures.csv")
    return write_json(_document(summary), folder / "summary.json")


def read_summary(path: Path) -> Summary:
    """Read a ``summary.json``, ours or nnU-Net's (whose classes are then named by their raw values).

    Raises: DataError if it is not such a file.
    """
    try:
        data = json.loads(path.read_text())
        keys = (
            tuple(data["metric_per_case"][0]["metrics"]) if data["metric_per_case"] else tuple(data["mean"])
        )
        own = data.get("medplan", {})
        cases = tuple(_read_case(entry, keys) for entry in data["metric_per_case"])
        return Summary(
            class_names=tuple(own.get("class_names", keys)), class_keys=keys, cases=cases,
            unit=own.get("unit", "mm"), tolerance=own.get("tolerance", 2.0),
            surface=own.get("surface", False), missing=tuple(own.get("missing", ())),
            prompts=own.get("prompts"),
        )  # fmt: skip
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file; 'medplan evaluate' writes it.") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: not a summary of an evaluation ({type(error).__name__}: {error})."
        ) from None


def _document(summary: Summary) -> dict[str, Any]:
    means = {name: summary.class_mean(name) for name in METRICS}
    per_class = {
        key: {METRICS[name]: float(means[name][row]) for name in METRICS}
        for row, key in enumerate(summary.class_keys)
    }
    per_case = [
        {
            "metrics": {
                key: {METRICS[name]: getattr(score, name) for name in METRICS} | {"outcome": score.outcome}
                for key, score in zip(summary.class_keys, case.scores, strict=True)
            },
            "prediction_file": str(case.prediction),
            "reference_file": str(case.reference),
            "case": case.id,
            **({"figures": dict(case.figures)} if case.figures else {}),
        }
        for case in summary.cases
    ]
    pooled = summary.pooled_dice()
    floats = [name for name in METRICS if name not in COUNTS]
    own = {
        "class_names": summary.class_names,
        "unit": summary.unit,
        "tolerance": summary.tolerance,
        "surface": summary.surface,
        "missing": summary.missing,
        "prompts": summary.prompts,
        "figures": summary.figures(),
        "pooled_dice": dict(zip(summary.class_keys, pooled.tolist(), strict=True)),
        "pooled_foreground_dice": _mean(pooled),
        "confidence_95": {METRICS[name]: summary.interval(name) for name in floats},
        "false_positive_ml": dict(zip(summary.class_keys, summary.false_positive_ml(), strict=True)),
        "outcomes": {
            key: {name: summary.outcomes(name)[row] for name in ("both", "missed", "false alarm", "absent")}
            for row, key in enumerate(summary.class_keys)
        },
    }
    return {
        "foreground_mean": {METRICS[name]: summary.mean(name) for name in METRICS},
        "mean": per_class,
        "metric_per_case": per_case,
        "medplan": own,
    }


def _csv(summary: Summary) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    writer.writerows(csv_rows(summary))
    return text.getvalue()


def csv_rows(summary: Summary) -> Iterator[list[object]]:
    """Yield the scores of every case and class, in the order of `CSV_COLUMNS`."""
    for case in summary.cases:
        for name, key, score in zip(summary.class_names, summary.class_keys, case.scores, strict=True):
            values = (getattr(score, metric) for metric in METRICS)
            cells = [f"{value:.6g}" if isinstance(value, float) else value for value in values]
            yield [case.id, name, key, score.outcome, *cells]


def _figures_csv(summary: Summary) -> str:
    text, names = io.StringIO(), list(summary.figures())
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["case", *names])
    for case in summary.cases:
        writer.writerow(
            [case.id, *(f"{case.figures[name]:.6g}" if name in case.figures else "" for name in names)]
        )
    return text.getvalue()


def _read_case(entry: Mapping[str, Any], keys: tuple[str, ...]) -> CaseScores:
    prediction = Path(entry["prediction_file"])
    scores = []
    for key in keys:
        found = entry["metrics"][key]
        values: dict[str, Any] = {name: found[METRICS[name]] for name in METRICS if METRICS[name] in found}
        scores.append(ClassScore(**values))
    return CaseScores(
        id=entry.get("case", prediction.name.split(".")[0]), prediction=prediction,
        reference=Path(entry["reference_file"]), scores=tuple(scores), figures=entry.get("figures", {}),
    )  # fmt: skip


def _mean(values: Any) -> float:
    known = [float(value) for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _bootstrap(table: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], float, float, int]:
    """Return class means of a (cases, classes) table, the bounds of their mean, and the cases that count."""
    known = ~np.isnan(table)
    filled, defined = np.where(known, table, 0.0), known.astype(np.float64)
    count = int(known.any(1).sum())
    ones = np.ones((1, len(table)))
    means = _weighted(ones, filled, defined)[0]
    if count < 2:
        return means, math.nan, math.nan, count
    rng = np.random.default_rng(0)
    weights = rng.multinomial(len(table), np.full(len(table), 1 / len(table)), size=RESAMPLES).astype(
        np.float64
    )
    resampled = _weighted(weights, filled, defined)
    seen = ~np.isnan(resampled)
    drawn = np.where(seen, resampled, 0).sum(1)[seen.any(1)] / seen.sum(1)[seen.any(1)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return means, float(low), float(high), count


def _weighted(
    weights: npt.NDArray[np.float64], filled: npt.NDArray[np.float64], defined: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    total = weights @ defined
    means = np.full(total.shape, np.nan)
    np.divide(weights @ filled, total, out=means, where=total > 0)
    return means
