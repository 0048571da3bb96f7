from pathlib import Path

import numpy as np
import numpy.typing as npt

from medplan.data.labels import LabelSpace
from medplan.predict import postprocess
from medplan.predict.postprocess import Postprocessing, apply, decide

LABELS = LabelSpace(names=("liver", "spleen"), values=((3,), (300,)))


def blocks(*places: tuple[int, int, int, int], side: int = 3) -> npt.NDArray[np.uint16]:
    label = np.zeros((12, 12, 12), np.uint16)
    for value, z, y, x in places:
        label[z : z + side, y : y + side, x : x + side] = value
    return label


def test_only_the_largest_component_of_a_class_is_kept() -> None:
    label = blocks((3, 0, 0, 0), (300, 8, 8, 8))
    stray = label.copy()
    stray[6, 0, 0], stray[0, 11, 11] = 3, 300
    np.testing.assert_array_equal(apply(Postprocessing(largest_of=LABELS.names), stray, LABELS), label)
    only_liver = apply(Postprocessing(largest_of=("liver",)), stray, LABELS)
    assert only_liver[6, 0, 0] == 0 and only_liver[0, 11, 11] == 300


def test_the_foreground_counts_as_one_component_whatever_its_classes() -> None:
    label = blocks((3, 0, 0, 0), (300, 3, 0, 0), (3, 9, 9, 9))
    kept = apply(Postprocessing(largest_foreground=True), label, LABELS)
    np.testing.assert_array_equal(kept, blocks((3, 0, 0, 0), (300, 3, 0, 0)))
    assert label[9, 9, 9] == 3


def test_components_that_touch_at_a_corner_are_one() -> None:
    label = blocks((3, 0, 0, 0), (3, 3, 3, 3))
    np.testing.assert_array_equal(apply(Postprocessing(largest_of=("liver",)), label, LABELS), label)


def test_a_picture_is_a_volume_of_one_slice() -> None:
    label = np.zeros((1, 8, 8), np.uint8)
    label[0, :3, :3], label[0, 7, 7] = 3, 3
    kept = apply(Postprocessing(largest_of=("liver",)), label, LABELS)
    assert kept.sum() == 27 and kept[0, 7, 7] == 0


def test_a_step_that_removes_false_components_is_taken() -> None:
    reference = blocks((3, 0, 0, 0), (300, 8, 8, 8))
    predicted = reference.copy()
    predicted[6, 0, 0] = 3
    record = decide([(predicted, reference)], LABELS)
    assert record.largest_of == ("liver", "spleen") and not record.largest_foreground
    assert record.dice_before is not None and record.dice_before < 1 and record.dice_after == 1.0


def test_a_class_that_is_rightly_removed_altogether_weighs_up_a_small_loss_elsewhere() -> None:
    shown = blocks((3, 0, 0, 0), (300, 3, 0, 0))
    shown[11, 11, 11] = 300
    without = blocks((3, 0, 0, 0))
    invented = without.copy()
    invented[11, 11, 11] = 300
    assert decide([(shown, shown), (invented, without)], LABELS).largest_foreground
    assert not decide([(shown, shown), (without, without)], LABELS).largest_foreground


def test_a_class_that_comes_in_two_parts_is_left_alone() -> None:
    reference = blocks((3, 0, 0, 0), (3, 8, 8, 8), (300, 0, 8, 0))
    record = decide([(reference, reference)] * 2, LABELS)
    assert record.largest_of == ("spleen",) and not record.largest_foreground
    assert record.num_cases == 2


def test_a_class_that_no_case_shows_is_left_alone() -> None:
    reference = blocks((3, 0, 0, 0))
    assert decide([(reference, reference)], LABELS).largest_of == ("liver",)


def test_without_cases_nothing_is_decided() -> None:
    assert decide([], LABELS).does_nothing


def test_a_region_is_made_of_all_its_values() -> None:
    labels = LabelSpace(names=("whole", "core"), values=((1, 2), (2,)), region_order=(1, 2))
    label = blocks((1, 0, 0, 0), (2, 3, 0, 0), (1, 9, 9, 9), side=3)
    kept = apply(Postprocessing(largest_of=("whole",)), label, labels)
    np.testing.assert_array_equal(kept, blocks((1, 0, 0, 0), (2, 3, 0, 0)))


def test_the_record_survives_its_file(tmp_path: Path) -> None:
    record = Postprocessing(largest_foreground=True, largest_of=("liver",), num_cases=3, dice_before=0.5)
    postprocess.write(record, tmp_path)
    assert postprocess.read(tmp_path) == record
    assert postprocess.read(tmp_path / "nothing").does_nothing


def test_folds_do_together_what_each_of_them_does(tmp_path: Path) -> None:
    records = [
        Postprocessing(largest_foreground=True, largest_of=("liver", "spleen"), num_cases=2),
        Postprocessing(largest_foreground=True, largest_of=("spleen",), num_cases=3),
    ]
    for number, record in enumerate(records):
        postprocess.write(record, tmp_path / str(number))
    common = postprocess.read_common([tmp_path / "0", tmp_path / "1"])
    assert common == Postprocessing(largest_foreground=True, largest_of=("spleen",), num_cases=5)
    assert postprocess.read_common([tmp_path / "0"]) == records[0]
    assert postprocess.read_common([tmp_path / "0", tmp_path / "none"]).does_nothing
