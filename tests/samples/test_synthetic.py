"""Images drawn from labels show the labels, and depend on nothing but label and seed."""

import torch

from medplan.samples.synthetic import Synthesis, synthesise

PLAIN = Synthesis(
    spread=(0, 0), dark_background=1, bias=0, softness_vox=(0, 0), coarseness=(1, 1), noise=0, gamma=0
)


def blocks(shape=(12, 14, 10)):
    codes = torch.zeros((2, *shape), dtype=torch.int16)
    codes[:, 2:6, 2:6, 2:6], codes[:, 6:10, 4:12, 3:8] = 1, 2
    codes[1, 8:, 8:, 8:] = 3
    return codes


def draw(codes, seed=0, settings=None):
    return synthesise(codes, num_greys=4, generator=torch.Generator().manual_seed(seed), settings=settings)


def test_without_disturbances_each_class_has_one_grey_and_what_has_no_class_is_black():
    codes = blocks()
    for image, own in zip(draw(codes, settings=PLAIN)[:, 0], codes, strict=True):
        greys = [image[own == code].unique() for code in own.unique()]
        assert all(len(grey) == 1 for grey in greys)
        assert greys[0] == 0 and len(torch.cat(greys).unique()) == len(greys)


def test_images_lie_in_the_unit_range_and_have_one_channel():
    images = draw(blocks())
    assert images.shape == (2, 1, 12, 14, 10) and images.dtype == torch.float32
    assert images.amin() == 0 and images.amax() == 1


def test_the_same_seed_gives_the_same_image_and_another_seed_another_contrast():
    codes = blocks()
    assert torch.equal(draw(codes, 1), draw(codes, 1))
    first, second = (draw(codes, seed, PLAIN)[0, 0] for seed in (1, 2))
    ratio = [image[codes[0] == 1].mean() / image[codes[0] == 2].mean() for image in (first, second)]
    assert abs(ratio[0] - ratio[1]) > 0.01


def test_an_element_does_not_depend_on_the_others_of_its_batch():
    codes = blocks()
    other = codes.clone()
    other[1] = 0
    assert torch.equal(draw(codes)[0], draw(other)[0])


def test_voxels_without_annotation_look_like_background():
    codes = blocks()
    unknown = codes.clone()
    unknown[codes == 0] = -1
    assert torch.equal(draw(codes), draw(unknown))


def test_the_bias_field_is_smooth_and_multiplies():
    codes = torch.ones((1, 16, 16, 16), dtype=torch.int16)
    settings = Synthesis(
        spread=(0, 0), bias=0.5, softness_vox=(0, 0), coarseness=(1, 1), noise=0, gamma=0, grey=(0.5, 0.5)
    )
    image = draw(codes, settings=settings)[0, 0]
    # Three cells span the side, so a step of one voxel is a fifth of a cell.
    assert image.std() > 0.05 and image.diff(dim=0).abs().max() < 0.35


def test_flat_label_maps_and_empty_ones_give_finite_images():
    assert draw(torch.zeros((1, 1, 8, 8), dtype=torch.int16)).isfinite().all()
    assert draw(blocks((1, 16, 16))[:, :1]).isfinite().all()
