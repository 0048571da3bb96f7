"""Boxes to be pasted: where they lie, and that what is pasted is what is compared."""

import pytest
import torch

from medplan.learning.pseudo_labels import paste_consistency
from medplan.samples.paste import boxes_around_foreground, boxes_inside_extent, paste


def test_a_released_square_that_touches_the_border_is_clipped():
    codes = torch.zeros(200, 1, 12, 12, dtype=torch.int16)
    codes[:, :, 1:11, 1:11] = 1
    areas = boxes_inside_extent(codes, torch.rand(200, 6), side=8).mask((1, 12, 12)).flatten(1).sum(1)
    assert areas.max() == 64 and 0 < areas.min() < 64


def test_a_released_square_needs_foreground_larger_than_itself():
    codes = torch.zeros(4, 1, 12, 12, dtype=torch.int16)
    codes[:, :, 2:10, 2:11] = 1
    assert boxes_inside_extent(codes, torch.rand(4, 6), side=7).mask((1, 12, 12)).sum() == 0
    assert boxes_inside_extent(codes, torch.rand(4, 6), side=6).mask((1, 12, 12)).flatten(1).any(1).all()


@pytest.mark.parametrize("shape", [(1, 10, 14), (6, 10, 14)])
def test_boxes_around_foreground_hold_foreground_of_every_class_alike(shape):
    codes = torch.zeros(300, *shape, dtype=torch.int16)
    codes[:, 0, 2:8, 1:6] = 1
    codes[:, 0, 9, 13] = 2
    boxes = boxes_around_foreground(codes, 3, torch.rand(300, 6), fraction=(0.2, 0.2))
    mask = boxes.mask(shape).squeeze(1)
    assert ((codes > 0) & mask).flatten(1).any(1).all()
    share = ((codes == 2) & mask).flatten(1).any(1).float().mean()
    assert 0.35 < share < 0.65
    sides = boxes.upper_B3 - boxes.lower_B3
    assert (sides <= torch.tensor([max(1, round(0.2 * side)) for side in shape])).all()


def test_a_box_is_the_pasted_voxels_and_the_compared_ones():
    """The released code compares the transposed square: rows x, columns y."""
    image, other = torch.rand(3, 2, 4, 9, 12), torch.rand(3, 2, 4, 9, 12)
    codes = (torch.rand(3, 4, 9, 12) > 0.7).to(torch.int16)
    mask = boxes_around_foreground(codes, 2, torch.rand(3, 6), fraction=(0.3, 0.6)).mask(codes.shape[1:])
    pasted = paste(other, image, mask)
    assert ((pasted == image).all(1, keepdim=True) == mask).all()
    assert paste_consistency(image, pasted, mask) == 0
    assert paste_consistency(image, pasted, ~mask) > 0


def test_the_same_seed_pastes_the_same_box_and_sizes_may_differ_per_axis():
    codes = torch.zeros(2, 6, 10, 30, dtype=torch.int16)
    codes[:, 2:4, 3:8, 5:25] = 1
    masks = []
    for seed in (1, 1, 2):
        uniform = torch.rand(2, 6, generator=torch.Generator().manual_seed(seed))
        masks.append(boxes_around_foreground(codes, 2, uniform, fraction=(0.1, 0.9)).mask(codes.shape[1:]))
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])
