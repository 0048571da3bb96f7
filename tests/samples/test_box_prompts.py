"""The laws of boxes: around masks, moved, cut, found, and drawn for training."""

import numpy as np
import pytest
import torch

from medplan.samples.box_prompts import (
    boxes_of_components,
    coverage,
    in_slice,
    prompting_boxes,
    tight_boxes,
    whole_image,
    widened,
)
from medplan.samples.cases import Case
from medplan.samples.prompted import Prompted, depth_of, masks_of
from medplan.samples.spatial import Spatial

NO_TRANSFORM = Spatial(rotation_probability=0, scaling_probability=0, in_plane=True)


def test_a_tight_box_holds_exactly_the_mask():
    masks = torch.zeros(4, 10, 12, dtype=torch.bool)
    masks[0, 2:5, 3:9] = True
    masks[1, 9, 11] = True
    masks[2, 0] = True
    boxes, found = tight_boxes(masks)
    assert boxes.tolist() == [[3, 2, 9, 5], [11, 9, 12, 10], [0, 0, 12, 1], [0, 0, 12, 10]]
    assert found.tolist() == [True, True, True, False]


def test_sides_move_outwards_as_far_as_the_image():
    box = torch.tensor([[3.0, 2.0, 9.0, 5.0]])
    assert widened(box, torch.tensor([[1.0, 5.0, 2.0, 3.0]]), (10, 12)).tolist() == [[2, 0, 11, 8]]
    assert widened(box, torch.full((1, 4), 99.0), (10, 12)).tolist() == [[0, 0, 12, 10]]
    inwards = widened(box, torch.full((1, 4), -99.0), (10, 12))
    assert (inwards[:, 2:] - inwards[:, :2]).tolist() == [[1, 1]], "a pixel is left"


def test_a_slice_sees_the_boxes_that_cover_its_middle_cut_to_its_patch():
    boxes = np.array(
        [[-np.inf, 2, 3, np.inf, 30, 8], [1, 0, 0, 2, 4, 4], [0.6, 0, 0, 3, 4, 4], [0, 90, 90, 9, 99, 99]]
    )
    assert in_slice(boxes, (1, 0, 0), (20, 20)).tolist() == [[3, 2, 8, 20], [0, 0, 4, 4], [0, 0, 4, 4]]
    assert in_slice(boxes, (0, 0, 0), (20, 20)).tolist() == [[3, 2, 8, 20]]
    assert in_slice(boxes, (0, -2, 1), (20, 20)).tolist() == [[2, 4, 7, 20]]


def test_components_give_their_boxes_the_largest_first_and_crumbs_none():
    mask = np.zeros((20, 20), dtype=bool)
    mask[1:3, 2:4] = True
    mask[5:15, 6:16] = True
    mask[18, 18] = True
    assert boxes_of_components(mask, least_share=0.02).tolist() == [[6, 5, 16, 15], [2, 1, 4, 3]]
    assert boxes_of_components(mask, least_share=0.5).tolist() == [[6, 5, 16, 15]]
    assert boxes_of_components(mask, least_share=0, at_most=1).shape == (1, 4)
    assert boxes_of_components(np.zeros((3, 3), dtype=bool)).shape == (0, 4)


def test_the_whole_image_is_a_box():
    assert whole_image((10, 12), like=torch.zeros(1)).tolist() == [0, 0, 12, 10]


def test_a_box_covers_its_own_area_cell_by_cell():
    boxes = torch.tensor([[3.0, 2.0, 9.0, 5.0], [0.0, 0.0, 12.0, 10.0], [0.5, 0.25, 1.0, 1.0]])
    covered = coverage(boxes, (5, 4), (10, 12))
    assert covered.shape == (3, 5, 4) and covered.amin() >= 0 and covered.amax() <= 1
    assert torch.allclose(covered.sum((1, 2)) * 6, torch.tensor([18.0, 120.0, 0.375]))
    assert torch.equal(covered[1], torch.ones(5, 4))
    assert covered[0].tolist() == [
        [0, 0, 0, 0], [0, 1, 1, 0], [0, 0.5, 0.5, 0], [0, 0, 0, 0], [0, 0, 0, 0]
    ]  # fmt: skip


def test_masks_are_those_of_each_slice_s_class():
    codes = torch.tensor([[[0, 1], [2, -1]], [[0, 1], [2, 3]]])
    masks = masks_of(codes, [(1,), (2, 3)], [0, 1])
    assert masks.tolist() == [[[False, True], [False, False]], [[False, False], [True, True]]]


class Store:
    def __init__(self, case):
        self.case = case

    def role(self, name):
        return ("D/c",) if name == "labelled" else ()

    def __getitem__(self, key):
        return self.case


def volume(codes):
    places = {int(code): np.argwhere(codes == code) for code in np.unique(codes) if code > 0}
    return Case(key="D/c", pixels=np.zeros((1, *codes.shape), np.float32), codes=codes, locations=places)


def draw(case, codes, *, whole_share, number=60):
    sample = Prompted((1, 8, 8), codes, whole_share, NO_TRANSFORM)
    rng = np.random.default_rng(0)
    return [sample(Store(case), rng) for _ in range(number)]


@pytest.mark.parametrize(("inwards", "least"), [(0.0, 0), (0.1, -2)])
def test_sides_of_training_boxes_move_as_far_as_told(inwards, least):
    mask = torch.zeros(4, 20, 30, dtype=torch.bool)
    mask[:3, 6:14, 8:20] = True
    jitter = torch.tensor([0.0, 0.5, 0.999, 0.5])[:, None].expand(-1, 4)
    whole = torch.tensor([False, False, True, False])
    found = prompting_boxes(mask, jitter, whole, outwards=0.2, inwards=inwards).tolist()
    middle = (least + 4) // 2
    assert found[0] == [8 - least, 6 - least, 20 + least, 14 + least]
    assert found[1] == [8 - middle, 6 - middle, 20 + middle, 14 + middle]
    assert found[2] == found[3] == [0, 0, 30, 20]


def test_prompted_slices_show_their_class():
    codes = np.zeros((6, 8, 8), dtype=np.int16)
    codes[2, 1:3, 1:3], codes[4, 5, 5] = 1, 3
    elements = draw(volume(codes), ((1,), (2, 3)), whole_share=0.0)
    for element in elements:
        wanted = (1,) if element["class"] == 0 else (2, 3)
        assert np.isin(element["label"], wanted).any()
        assert element["image"].shape == (1, 1, 8, 8) and element["label"].shape == (1, 8, 8)
        assert element["whole"] == 0 and element["jitter"].shape == (4,)
    assert {(e["class"], e["other"]) for e in elements} == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert {float(e["depth"]) for e in elements} == {np.float32(depth_of(z, 6)) for z in (2, 4)}


def test_whole_images_also_show_slices_and_classes_without_the_class():
    codes = np.zeros((6, 8, 8), dtype=np.int16)
    codes[2, 1:3, 1:3] = 1
    elements = draw(volume(codes), ((1,), (2,)), whole_share=1.0)
    assert all(element["whole"] == 1 for element in elements)
    assert {element["class"] for element in elements} == {0, 1}
    assert not all(element["label"].any() for element in elements)
    assert any(element["label"].any() for element in elements)


@pytest.mark.parametrize("whole_share", [0.0, 0.5])
def test_a_case_without_any_class_is_drawn_all_the_same(whole_share):
    elements = draw(volume(np.zeros((1, 8, 8), dtype=np.int16)), ((1,),), whole_share=whole_share, number=5)
    assert all(element["class"] == 0 and element["depth"] == 0 for element in elements)
