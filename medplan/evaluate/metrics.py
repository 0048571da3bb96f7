"""How well one predicted label map agrees with its reference, per class.

Conventions, where P is the prediction and R the reference of one class in one case:

* Dice = 2 |P and R| / (|P| + |R|), IoU = |P and R| / |P or R|; voxels without annotation are left out.
* Absent in both: every score is NaN and left out of all means; the case counts as `absent`.
* Absent in the prediction only: Dice, IoU and NSD are 0, the distances NaN; it counts as `missed`.
* Absent in the reference only: Dice, IoU and NSD are 0, the distances NaN; it counts as `false alarm`, and
  what was predicted is its false-positive volume.
* Distances are in mm; in pictures, which have no spacing, in pixels, and volumes are then not given.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from medplan.data.boxes import nonzero_box
from medplan.data.labels import IGNORE, LabelSpace
from medplan.evaluate.surface import surface_scores

__all__ = ["ClassScore", "Outcome", "confusion_matrix", "score_case"]

Outcome = Literal["both", "missed", "false alarm", "absent"]

Labels = npt.NDArray[np.integer]

# Above this many pairs of raw values the label maps are translated first: slower, but with a small table.
MAX_PAIRS = 2**16
CHUNK = 2**17


@dataclass(frozen=True, kw_only=True)
class ClassScore:
    """Agreement on one class in one case; see the conventions of the module.

    Attributes:
        dice, iou: 0 to 1.
        tp, fp, fn, tn: voxels.
        n_pred, n_ref: voxels of the class.
        hd95, assd: mm (pictures: pixels); NaN where a surface is missing or surfaces were not asked for.
        nsd: 0 to 1; NaN where surfaces were not asked for.
        volume_pred_ml, volume_ref_ml: NaN for pictures.
    """

    dice: float
    iou: float
    tp: int
    fp: int
    fn: int
    tn: int
    n_pred: int
    n_ref: int
    hd95: float = math.nan
    assd: float = math.nan
    nsd: float = math.nan
    volume_pred_ml: float = math.nan
    volume_ref_ml: float = math.nan

    @property
    def outcome(self) -> Outcome:
        if self.n_ref:
            return "both" if self.n_pred else "missed"
        return "false alarm" if self.n_pred else "absent"


def score_case(
    prediction: Labels,
    reference: Labels,
    *,
    labels: LabelSpace,
    spacing_mm: tuple[float, float, float] | None,
    surface: bool = True,
    tolerance_mm: float = 2.0,
    names: tuple[str, str] = ("the prediction", "the reference"),
) -> tuple[ClassScore, ...]:
    """Score a predicted label map.

    Args:
        prediction: (Z, Y, X) raw values.
        reference: (Z, Y, X) raw values.
        labels: what the raw values mean; regions are compared by membership of the raw values.
        spacing_mm: (z, y, x), or None for pictures (distances are then in pixels).
        surface: also measure distances between surfaces; voxels without annotation count as background there.
        tolerance_mm: of the normalised surface distance, in mm (pictures: pixels).
        names: what errors call the two label maps.

    Returns: one score per class of `labels`, in its order.
    Raises: DataError if there are values that `labels` does not declare; ValueError if the shapes differ.
    """
    matrix = confusion_matrix(prediction, reference, labels=labels, names=names)
    members = _members(labels)
    total = int(matrix.sum())
    true = np.einsum("ki,ij,kj->k", members, matrix, members)
    in_reference, in_prediction = members @ matrix.sum(1), members @ matrix.sum(0)
    distances = _surfaces(
        prediction, reference, labels=labels, members=members, spacing_mm=spacing_mm or (1.0, 1.0, 1.0),
        tolerance_mm=tolerance_mm,
    ) if surface else {}  # fmt: skip
    ml = math.prod(spacing_mm) / 1000 if spacing_mm else math.nan
    scores = []
    for row in range(len(labels.names)):
        tp, n_ref, n_pred = int(true[row]), int(in_reference[row]), int(in_prediction[row])
        either = n_ref + n_pred - tp
        one_missing = surface and either > 0 and (n_ref == 0 or n_pred == 0)
        hd95, assd, nsd = distances.get(row, (math.nan, math.nan, 0.0 if one_missing else math.nan))
        scores.append(
            ClassScore(
                dice=2 * tp / (n_ref + n_pred) if either else math.nan,
                iou=tp / either if either else math.nan,
                tp=tp, fp=n_pred - tp, fn=n_ref - tp, tn=total - either, n_pred=n_pred, n_ref=n_ref,
                hd95=hd95, assd=assd, nsd=nsd, volume_pred_ml=n_pred * ml, volume_ref_ml=n_ref * ml,
            )
        )  # fmt: skip
    return tuple(scores)


def confusion_matrix(
    prediction: Labels,
    reference: Labels,
    *,
    labels: LabelSpace,
    names: tuple[str, str] = ("the prediction", "the reference"),
) -> npt.NDArray[np.int64]:
    """Count voxels by code of the reference (rows) and of the prediction (columns).

    Voxels without annotation in the reference are left out; a prediction of "no annotation" is background.

    Returns: (codes + 1, codes + 1), background first; see `LabelSpace` for codes.
    Raises: DataError if there are values that `labels` does not declare; ValueError if the shapes differ.
    """
    if prediction.shape != reference.shape:
        raise ValueError(f"the label maps have shapes {prediction.shape} and {reference.shape}")
    pred_low, ref_low = int(prediction.min(initial=0)), int(reference.min(initial=0))
    pred_span = int(prediction.max(initial=0)) - pred_low + 1
    ref_span = int(reference.max(initial=0)) - ref_low + 1
    if pred_span * ref_span > MAX_PAIRS:
        prediction = labels.encode(prediction, where=names[0]).astype(np.int64)
        reference = labels.encode(reference, where=names[1]).astype(np.int64)
        pred_low = ref_low = IGNORE
        pred_span = ref_span = len(labels.codes) + 2
        pred_codes = ref_codes = np.arange(IGNORE, len(labels.codes) + 1, dtype=np.int16)
        joint = _joint(prediction, reference, pred_low, ref_low, pred_span, ref_span)
        pred_found = ref_found = np.arange(pred_span)
    else:
        # Counting raw values first and translating the few that occur saves two passes over all voxels.
        joint = _joint(prediction, reference, pred_low, ref_low, pred_span, ref_span)
        pred_found, ref_found = np.flatnonzero(joint.any(0)), np.flatnonzero(joint.any(1))
        pred_codes = labels.encode(pred_found + pred_low, where=names[0])
        ref_codes = labels.encode(ref_found + ref_low, where=names[1])
    size = len(labels.codes) + 1
    matrix = np.zeros((size, size), dtype=np.int64)
    annotated = ref_codes != IGNORE
    rows, columns = ref_codes[annotated], np.maximum(pred_codes, 0)
    np.add.at(matrix, (rows[:, None], columns[None]), joint[np.ix_(ref_found[annotated], pred_found)])
    return matrix


def _joint(
    prediction: Labels, reference: Labels, pred_low: int, ref_low: int, pred_span: int, ref_span: int
) -> npt.NDArray[np.int64]:
    counts = np.zeros(ref_span * pred_span, dtype=np.int64)
    flat_pred, flat_ref = prediction.reshape(-1), reference.reshape(-1)
    # Piece by piece, because a pair takes eight bytes where a label takes one.
    for start in range(0, flat_ref.size, CHUNK):
        piece = slice(start, start + CHUNK)
        pairs = flat_ref[piece].astype(np.intp)
        pairs -= ref_low
        pairs *= pred_span
        np.add(pairs, flat_pred[piece], out=pairs, casting="unsafe")
        pairs -= pred_low
        counts += np.bincount(pairs, minlength=len(counts))
    return counts.reshape(ref_span, pred_span)


def _members(labels: LabelSpace) -> npt.NDArray[np.int64]:
    """Return (classes, codes + 1), 1 where voxels of that code belong to that foreground class."""
    table = labels.membership()
    return (table[1:] if labels.is_exclusive else table).astype(np.int64)


def _surfaces(
    prediction: Labels,
    reference: Labels,
    *,
    labels: LabelSpace,
    members: npt.NDArray[np.int64],
    spacing_mm: tuple[float, float, float],
    tolerance_mm: float,
) -> dict[int, tuple[float, float, float]]:
    """Return (hd95, assd, nsd) of the classes that are in both maps."""
    from scipy.ndimage import find_objects

    foreground = nonzero_box(prediction, reference)
    if foreground is None:
        return {}
    box = tuple(slice(max(first - 1, 0), behind + 1) for first, behind in zip(*foreground, strict=True))
    pred_codes = labels.encode(prediction[box], where="the prediction")
    ref_codes = labels.encode(reference[box], where="the reference")
    pred_codes = np.where(ref_codes == IGNORE, 0, np.maximum(pred_codes, 0)).astype(np.int16)
    ref_codes = np.maximum(ref_codes, 0)
    size = members.shape[1]
    pred_boxes, ref_boxes = find_objects(pred_codes, size - 1), find_objects(ref_codes, size - 1)
    found: dict[int, tuple[float, float, float]] = {}
    for row, member in enumerate(members):
        own = [code for code in np.flatnonzero(member) if code > 0]
        boxes = [b[code - 1] for b in (pred_boxes, ref_boxes) for code in own if b[code - 1] is not None]
        if not boxes:
            continue
        # One voxel of margin keeps an axis apart from that of a picture, which has a single voxel.
        union = tuple(
            slice(max(min(b[axis].start for b in boxes) - 1, 0), max(b[axis].stop for b in boxes) + 1)
            for axis in range(3)
        )
        inside = member.astype(bool)
        pred_mask, ref_mask = inside[pred_codes[union]], inside[ref_codes[union]]
        if pred_mask.any() and ref_mask.any():
            scores = surface_scores(pred_mask, ref_mask, spacing_mm=spacing_mm, tolerance_mm=tolerance_mm)
            found[row] = (scores.hd95, scores.assd, scores.nsd)
    return found
