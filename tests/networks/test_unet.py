import pytest
import torch
from torch import nn

from medplan.networks.unet import UNet, UNetEncoder
from medplan.plan.topology import make_pyramid

CUBIC = make_pyramid((16, 32, 32), (1.0, 1.0, 1.0), 3, base_features=4)
THICK = make_pyramid((8, 32, 32), (5.0, 1.0, 1.0), 3, base_features=4)
FLAT = make_pyramid((1, 32, 32), None, 2, base_features=4)


@pytest.mark.parametrize(
    ("pyramid", "dims", "shape"), [(CUBIC, 3, (16, 32, 32)), (THICK, 3, (8, 32, 32)), (FLAT, 2, (1, 32, 32))]
)
def test_logits_have_the_size_of_the_image(pyramid, dims, shape) -> None:  # type: ignore[no-untyped-def]
    network = UNet(2, pyramid, 3, dims, deep_supervision=True)
    outputs = network(torch.randn(2, 2, *shape))
    assert outputs[0].shape == (2, 3, *shape)
    for finer, coarser, stride in zip(outputs, outputs[1:], pyramid.strides[1:], strict=False):
        assert [a // b for a, b in zip(finer.shape[2:], coarser.shape[2:], strict=True)] == list(stride)


def test_outside_training_the_full_resolution_is_all_there_is() -> None:
    network = UNet(1, CUBIC, 2, 3, deep_supervision=True).eval()
    image = torch.randn(1, 1, 16, 32, 32)
    (alone,) = network(image)
    assert torch.equal(alone, network.train()(image)[0])


def test_the_encoder_gives_one_map_per_stage() -> None:
    maps = UNetEncoder(1, THICK, 3)(torch.randn(1, 1, 8, 32, 32))
    assert [m.shape[1] for m in maps] == list(THICK.features)
    assert min(maps[-1].shape[2:]) >= 2


def test_every_parameter_takes_part_in_training() -> None:
    network = UNet(1, CUBIC, 2, 3, deep_supervision=True)
    for module in network.modules():
        if isinstance(module, nn.InstanceNorm3d):
            nn.init.ones_(module.weight)
    sum(logits.square().mean() for logits in network(torch.randn(1, 1, 16, 32, 32))).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_an_axis_with_kernel_one_does_not_mix_its_slices() -> None:
    stem = UNetEncoder(1, THICK, 3).stem
    image = torch.randn(1, 1, 8, 16, 16)
    changed = image.clone()
    changed[:, :, 0] += 1
    with torch.no_grad():
        difference = (stem.conv(changed) - stem.conv(image)).abs().amax(dim=(0, 1, 3, 4))
    assert difference[0] > 0
    assert torch.all(difference[1:] == 0)


def test_residual_blocks_begin_as_their_shortcut() -> None:
    network = UNet(1, CUBIC, 2, 3)
    block = network.encoder.stages[0][0]  # type: ignore[index]
    x = torch.randn(1, 4, 4, 8, 8).abs()
    assert torch.allclose(block(x), x)


@pytest.mark.parametrize(
    ("patch", "spacing", "dims"),
    [
        ((128, 128, 128), (1.5, 1.5, 1.5), 3),
        ((16, 256, 224), (8.0, 1.25, 1.25), 3),
        ((1, 512, 512), None, 2),
        ((40, 56, 40), (1.0, 1.0, 1.0), 3),
        ((64, 64, 64), (1.0, 1.0, 4.0), 3),
    ],
)
def test_a_pyramid_stops_at_four_voxels_and_waits_for_coarse_axes(patch, spacing, dims) -> None:  # type: ignore[no-untyped-def]
    pyramid = make_pyramid(patch, spacing, dims)
    axes = (0, 1, 2) if dims == 3 else (1, 2)
    steps = pyramid.multiple
    assert all(patch[axis] / steps[axis] >= 4 or steps[axis] == 1 for axis in axes)
    assert dims == 3 or steps[0] == 1
    current = list(spacing or (1.0, 1.0, 1.0))
    for stride, kernel in zip(pyramid.strides, pyramid.kernels, strict=True):
        for axis in axes:
            assert stride[axis] == 1 or current[axis] < 2 * min(current[a] for a in axes) + 1e-9
            current[axis] *= stride[axis]
        finest = min(current[a] for a in axes)
        is_last = kernel is pyramid.kernels[-1]
        assert is_last or all(kernel[axis] == 3 or current[axis] >= 2 * finest for axis in axes)
    assert pyramid.features == tuple(
        min(32 * 2**stage, 320 if dims == 3 else 512) for stage in range(len(pyramid.features))
    )


def test_the_pyramid_of_a_cube_is_nnunets() -> None:
    pyramid = make_pyramid((128, 128, 128), (1.0, 1.0, 1.0), 3)
    assert pyramid.features == (32, 64, 128, 256, 320, 320)
    assert pyramid.strides == ((1, 1, 1),) + ((2, 2, 2),) * 5
    assert pyramid.blocks == (1, 3, 4, 6, 6, 6)
    assert pyramid.decoder_blocks == (1,) * 5


def test_the_coarsest_resolution_of_the_decoder_is_not_supervised() -> None:
    image = torch.randn(1, 1, 16, 32, 32)
    assert len(UNet(1, CUBIC, 2, 3, deep_supervision=True)(image)) == len(CUBIC.features) - 2
    assert len(UNet(1, CUBIC, 2, 3)(image)) == 1
