"""The laws of the coordinate code and of the decoder that answers at any point."""

import math

import pytest
import torch

from medplan.errors import MethodError
from medplan.networks.implicit import (
    CoordinateCode,
    ImplicitDecoder,
    Widths,
    num_open,
    pixel_positions,
    place_in_box,
)

MAP, POSITIONAL = 4, 6


def decoder(*, compat=False, classes=1, **changes):
    torch.manual_seed(0)
    widths = Widths(coarse=(16, 12), fine=(12, 8), head=6, features=5)
    code = CoordinateCode(max_exponent=2.0, compat=compat)
    built = ImplicitDecoder(classes, MAP + POSITIONAL, code=code, widths=widths, **changes)
    # Statistics as after training: fresh ones would leave answers nearly constant.
    built.train()
    built(torch.rand(2, MAP, 8, 8), torch.rand(POSITIONAL, 8, 8), (16, 16), [0, 0])
    return built.eval()


def maps(number=1):
    torch.manual_seed(1)
    return torch.rand(number, MAP, 8, 8), torch.rand(POSITIONAL, 4, 4)


def test_entries_open_as_in_the_released_code():
    assert [num_open((epoch + 1) / 20) for epoch in (0, 1, 5, 18, 19, 30)] == [6, 9, 21, 62, 63, 63]


def test_released_code_is_sines_then_cosines_then_raw_coordinates():
    position = pixel_positions((3, 4), torch.arange(12), corners=True)
    code = CoordinateCode(compat=True)(position)
    assert code.shape == (12, 63)
    assert torch.equal(code[:, 60], torch.full((12,), -1.0))
    assert torch.equal(code[:, 61:], position)
    assert torch.allclose(code[:, 10], (2 * math.pi * position[:, 0]).sin(), atol=1e-6)
    assert torch.allclose(code[:, 50], (2 * math.pi * position[:, 1]).cos(), atol=1e-5)


def test_our_code_is_raw_coordinates_then_waves_from_low_to_high():
    position = pixel_positions((5, 3), torch.arange(15))
    code = CoordinateCode(max_exponent=7.0)(position, 0.25)
    assert code.shape == (15, 63)
    assert torch.equal(code[:, 0], torch.full((15,), 0.25))
    assert torch.equal(code[:, 1:3], position)
    for number, power in ((0, 0.0), (14, 7.0)):
        argument = 2 * math.pi * 2**power * position
        waves = code[:, 3 + 4 * number : 7 + 4 * number]
        assert torch.allclose(waves, torch.cat([argument.sin(), argument.cos()], 1), atol=1e-4)


def test_a_point_has_one_code_whatever_the_grid():
    code = CoordinateCode(max_exponent=6.0)
    coarse = code(pixel_positions((4, 4), torch.arange(16)))
    fine = code(pixel_positions((12, 12), torch.arange(144))).view(12, 12, 63)[1::3, 1::3].reshape(16, 63)
    assert torch.allclose(coarse, fine, atol=1e-4)


def test_a_place_in_the_box_is_told_by_its_sides_and_the_ellipse_in_it():
    box = torch.tensor([[-1.0, -1.0, 1.0, 1.0], [-0.5, 0.0, 0.5, 1.0]])
    points = torch.tensor([[0.0, -0.5], [0.5, 0.5], [0.5, 0.0], [-1.0, 0.0]])  # row, column
    place = place_in_box(points, box)
    assert torch.equal(place[0, :, :2], points)
    assert place[1].tolist() == [[-1, -1, 2], [0, 1, 1], [0, 0, 0], [-2, 0, 4]]


def test_no_box_is_the_whole_image():
    network, (field, positional) = decoder(knows_box=True), maps(2)
    whole = torch.tensor([[-1.0, -1.0, 1.0, 1.0]])
    with torch.no_grad():
        for box, same in ((whole, True), (whole / 2, False)):
            without = network(field, positional, (8, 8), [0, 0])[1]
            found = network(field, positional, (8, 8), [0, 0], box_B4=box.expand(2, -1))[1]
            assert torch.allclose(found, without) == same
        one = network.answer(field[:1], positional, (8, 8), 0, box_4=whole[0] / 2)
    assert torch.allclose(one.flatten(), found[0], atol=1e-5)


def test_features_are_bilinear_between_pixel_centres():
    field, positional = maps()
    network = decoder()
    found = network.features(field, positional, (16, 24), torch.arange(16 * 24))
    expected = torch.nn.functional.interpolate(field, size=(16, 24), mode="bilinear", align_corners=False)
    assert torch.allclose(found[0, :, :MAP], expected[0].flatten(1).T, atol=1e-5)


@pytest.mark.parametrize("shape", [(7, 5), (2, 3), (1, 1), (33, 20)])
@pytest.mark.parametrize("uncertainty", ["mc", "margin"])
def test_chunks_change_nothing(shape, uncertainty):
    network, (field, positional) = decoder(uncertainty=uncertainty), maps()
    with torch.no_grad():
        _, whole = network(field, positional, shape, [0])
        for chunk in (1, 7, 1000):
            answer = network.answer(field, positional, shape, 0, chunk_points=chunk)
            assert answer.shape == shape
            assert torch.allclose(answer.flatten(), whole[0], atol=1e-5)


def test_common_points_agree_between_grids():
    network, (field, positional) = decoder(share=0.0), maps()
    with torch.no_grad():
        small = network.answer(field, positional, (8, 8), 0)
        large = network.answer(field, positional, (24, 24), 0)
    assert torch.allclose(small, large[1::3, 1::3], atol=1e-4)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.125, 1.0])
def test_exactly_the_share_of_each_image_is_refined(share):
    network, (field, positional) = decoder(share=share), maps(3)
    with torch.no_grad():
        coarse, fine = network(field, positional, (8, 8), [0, 0, 0])
    changed = (coarse != fine).sum(1)
    assert changed.tolist() == [math.floor(share * 64)] * 3


def test_doubt_differs_between_points_and_is_no_band_and_repeats():
    network, (field, positional) = decoder(), maps()
    with torch.no_grad():
        output = network.coarse_output(network.features(field, positional, (16, 16), torch.arange(256)), [0])
        doubt = network.doubt(output)
        assert torch.equal(doubt, network.doubt(output))
    assert doubt.std() > 0
    chosen = doubt[0].topk(32).indices.sort().values
    assert (chosen.diff() > 1).any()


def test_mc_doubt_is_the_variance_over_dropped_channels():
    network = decoder(passes=3)
    output = torch.randn(1, 9, 6)
    kept = torch.rand((3, 6), generator=torch.Generator().manual_seed(0)) >= 0.5
    naive = torch.stack([output * mask * 2 for mask in kept]).var(0).mean(-1)
    assert torch.allclose(network.doubt(output), naive, atol=1e-6)


def test_margin_doubts_what_is_nearest_to_one_half():
    network = decoder(uncertainty="margin")
    output = torch.tensor([[[3.0, 1.0], [-0.1, 1.0], [0.5, 1.0]]])
    assert network.doubt(output)[0].argsort(descending=True).tolist() == [1, 2, 0]


def test_dropout_leaves_the_coarse_logit_alone_in_training():
    network, (field, positional) = decoder(), maps()
    network.train()
    first, second = (network(field, positional, (8, 8), [0])[0] for _ in range(2))
    assert torch.equal(first, second)
    released = decoder(compat=True)
    released.train()
    assert (released(field, positional, (16, 16), [0])[0] == 0).float().mean() > 0.3


def test_images_of_several_classes_are_answered_as_alone():
    network, (field, positional) = decoder(classes=3), maps(3)
    classes = [2, 0, 2]
    with torch.no_grad():
        _, together = network(field, positional, (6, 7), classes)
        for number, of_class in enumerate(classes):
            alone = network.answer(field[number : number + 1], positional, (6, 7), of_class)
            assert torch.allclose(together[number], alone.flatten(), atol=1e-5)


def test_the_released_mode_refuses_what_its_code_could_not_do():
    network, (field, positional) = decoder(compat=True, classes=2), maps(2)
    with pytest.raises(MethodError, match="--batch-size 1"):
        network(field, positional, (8, 8), [0, 1])


def test_a_closed_code_says_nothing_about_place_but_its_open_entries():
    network, (field, positional) = decoder(), maps()
    features = network.features(field, positional, (4, 4), torch.arange(16), openness=0.0)
    assert torch.equal(features[..., MAP + POSITIONAL + 3 :], torch.zeros(1, 16, 60))
    assert features[..., MAP + POSITIONAL + 1].std() > 0


def test_maps_are_sampled_where_points_are_in_half_precision_too():
    decoder = ImplicitDecoder(1, 2, code=CoordinateCode())
    stripes = (torch.arange(96) % 2).float().expand(1, 1, 96, 96)
    points = torch.arange(1024 * 512, 1024 * 513)
    exact, rough = (
        decoder.features(stripes.to(kind), torch.zeros(1, 24, 24), (1024, 1024), points)[0, :, 0].float()
        for kind in (torch.float32, torch.bfloat16)
    )
    assert (exact - rough).abs().max() < 0.005
