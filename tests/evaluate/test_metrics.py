import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from medplan.data.labels import LabelSpace
from medplan.errors import DataError
from medplan.evaluate import metrics
from medplan.evaluate.metrics import confusion_matrix, score_case
from medplan.evaluate.surface import surface_scores

ORGANS = LabelSpace(names=("liver", "spleen"), values=((1,), (7,)))
GROUPED = LabelSpace(names=("kidneys", "liver"), values=((2, 3), (6,)), ignore=9, others_are_background=True)
REGIONS = LabelSpace(names=("whole", "core"), values=((1, 2), (2,)), region_order=(1, 2), ignore=3)

Labels = npt.NDArray[np.integer[Any]]


def pairs(values: list[int]) -> st.SearchStrategy[tuple[Labels, Labels]]:
    drawn = st.sampled_from(values)
    shapes = hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=5)
    return shapes.flatmap(
        lambda shape: st.tuples(*[hnp.arrays(np.uint8, shape, elements=drawn) for _ in range(2)])
    )


def naive_counts(
    prediction: Labels, reference: Labels, labels: LabelSpace
) -> list[tuple[int, int, int, int]]:
    counts = []
    for values in labels.values:
        tp = fp = fn = tn = 0
        for guess, truth in zip(prediction.ravel().tolist(), reference.ravel().tolist(), strict=True):
            if truth == labels.ignore:
                continue
            tp += guess in values and truth in values
            fp += guess in values and truth not in values
            fn += guess not in values and truth in values
            tn += guess not in values and truth not in values
        counts.append((tp, fp, fn, tn))
    return counts


@settings(deadline=None)
@pytest.mark.parametrize(
    ("labels", "values"),
    [(ORGANS, [0, 1, 7]), (GROUPED, [0, 1, 2, 3, 6, 9]), (REGIONS, [0, 1, 2, 3])],
    ids=["exclusive", "grouped", "regions"],
)
@pytest.mark.parametrize("translate_first", [False, True])
@given(data=st.data())
def test_counts_equal_the_naive_ones(
    labels: LabelSpace, values: list[int], translate_first: bool, data: st.DataObject
) -> None:
    prediction, reference = data.draw(pairs(values))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "MAX_PAIRS", 0 if translate_first else 2**20)
        scores = score_case(prediction, reference, labels=labels, spacing_mm=None, surface=False)
    assert [(s.tp, s.fp, s.fn, s.tn) for s in scores] == naive_counts(prediction, reference, labels)
    for score in scores:
        assert score.n_ref == score.tp + score.fn
        assert score.n_pred == score.tp + score.fp
        if score.n_pred + score.n_ref:
            assert score.dice == pytest.approx(2 * score.iou / (1 + score.iou))
        else:
            assert math.isnan(score.dice)


@settings(deadline=None)
@given(pairs([0, 1, 7]))
def test_swapping_prediction_and_reference_swaps_errors_only(pair: tuple[Labels, Labels]) -> None:
    forth = score_case(*pair, labels=ORGANS, spacing_mm=(3.0, 1.0, 1.0))
    back = score_case(pair[1], pair[0], labels=ORGANS, spacing_mm=(3.0, 1.0, 1.0))
    for one, two in zip(forth, back, strict=True):
        assert (one.fp, one.n_pred) == (two.fn, two.n_ref)
        np.testing.assert_array_equal(
            [one.dice, one.iou, one.hd95, one.assd, one.nsd], [two.dice, two.iou, two.hd95, two.assd, two.nsd]
        )


def test_a_label_map_agrees_with_itself() -> None:
    labels = np.zeros((6, 8, 8), dtype=np.uint8)
    labels[2:4, 2:5, 2:5], labels[4, 5:7, 5:7] = 1, 7
    for score in score_case(labels, labels, labels=ORGANS, spacing_mm=(2.0, 1.0, 1.0), tolerance_mm=0):
        assert (score.dice, score.iou, score.nsd, score.hd95, score.assd) == (1, 1, 1, 0, 0)
        assert score.outcome == "both"


def test_volumes_are_in_millilitres_and_pictures_have_none() -> None:
    labels = np.ones((10, 10, 10), dtype=np.uint8)
    score = score_case(labels, labels, labels=ORGANS, spacing_mm=(2.0, 0.5, 1.0), surface=False)[0]
    assert score.volume_ref_ml == score.volume_pred_ml == pytest.approx(1.0)
    assert math.isnan(score_case(labels, labels, labels=ORGANS, spacing_mm=None)[0].volume_ref_ml)


def test_absent_in_both_is_undefined_and_absent_in_one_is_zero() -> None:
    empty, full = np.zeros((4, 4, 4), dtype=np.uint8), np.ones((4, 4, 4), dtype=np.uint8)
    missed, absent = score_case(empty, full, labels=ORGANS, spacing_mm=(1.0, 1.0, 1.0))
    assert (missed.outcome, missed.dice, missed.iou, missed.nsd) == ("missed", 0, 0, 0)
    assert math.isnan(missed.hd95) and math.isnan(missed.assd)
    assert absent.outcome == "absent"
    assert all(math.isnan(v) for v in (absent.dice, absent.iou, absent.nsd, absent.hd95, absent.assd))
    alarm = score_case(full, empty, labels=ORGANS, spacing_mm=(1.0, 1.0, 1.0))[0]
    assert (alarm.outcome, alarm.dice, alarm.nsd, alarm.volume_pred_ml) == ("false alarm", 0, 0, 0.064)


def test_classes_far_apart_get_the_distances_of_their_own_masks() -> None:
    rng = np.random.default_rng(3)
    prediction, reference = np.zeros((2, 9, 20, 20), dtype=np.int32)
    prediction[1:5, 2:9, 3:8], reference[2:5, 2:10, 4:9] = 1, 1
    prediction[8, 12:18, 11:17] = 7
    reference[7:9, 12:18, 12:19] = 7 * (rng.random((2, 6, 7)) > 0.3)
    scores = score_case(prediction, reference, labels=ORGANS, spacing_mm=(3.0, 1.0, 0.5), tolerance_mm=1)
    for value, score in zip((1, 7), scores, strict=True):
        whole = surface_scores(
            prediction == value, reference == value, spacing_mm=(3.0, 1.0, 0.5), tolerance_mm=1
        )
        assert (score.hd95, score.assd, score.nsd) == (whole.hd95, whole.assd, whole.nsd)


def test_voxels_without_annotation_change_no_score() -> None:
    reference = np.zeros((4, 6, 6), dtype=np.uint8)
    reference[1:3, 1:3, 1:3] = 2
    reference[:, 4:] = 3
    good, wild = reference.copy(), reference.copy()
    good[:, 4:], wild[:, 4:] = 0, 1
    options = {"labels": REGIONS, "spacing_mm": (1.0, 1.0, 1.0)}
    assert score_case(good, reference, **options) == score_case(wild, reference, **options)  # type: ignore[arg-type]


def test_values_that_are_not_declared_are_named() -> None:
    reference = np.zeros((2, 2, 2), dtype=np.uint8)
    prediction = reference + np.uint8(5)
    with pytest.raises(DataError, match=r"case1\.nii.*\[5\]"):
        confusion_matrix(prediction, reference, labels=ORGANS, names=("case1.nii", "truth.nii"))


def test_negative_and_large_values_are_counted() -> None:
    labels = LabelSpace(names=("a", "b"), values=((-3,), (40000,)))
    reference = np.array([[[-3, 40000, 0]]], dtype=np.int32)
    assert confusion_matrix(reference, reference, labels=labels).tolist() == np.eye(3).tolist()
