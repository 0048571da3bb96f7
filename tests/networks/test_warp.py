"""Warping: what flows do to volumes, and what no flow leaves alone."""

import pytest
import torch

from medplan.networks.warp import affine_flow, compose, integrate, jacobian_determinants, warp

SHAPES = [(6, 7, 8), (5, 9, 4), (1, 6, 6), (8, 8, 8)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mode", ["linear", "nearest"])
@pytest.mark.parametrize("outside", ["border", "zeros"])
def test_no_flow_changes_nothing(shape, mode, outside):
    volume = torch.rand(2, 3, *shape)
    still = torch.zeros(2, 3, *shape)
    assert torch.allclose(warp(volume, still, mode=mode, outside=outside), volume, atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_flow_of_one_voxel_shifts_by_one_voxel_along_its_axis_only(axis):
    volume = torch.rand(1, 1, 5, 6, 7)
    flow = torch.zeros(1, 3, 5, 6, 7)
    flow[:, axis] = 1
    shifted = warp(volume, flow)
    length = volume.shape[axis + 2]
    inside = shifted.narrow(axis + 2, 0, length - 1)
    assert torch.allclose(inside, volume.narrow(axis + 2, 1, length - 1), atol=1e-5)
    last = shifted.narrow(axis + 2, length - 1, 1)
    assert torch.allclose(last, volume.narrow(axis + 2, length - 1, 1), atol=1e-5)
    zeros = warp(volume, flow, outside="zeros").narrow(axis + 2, length - 1, 1)
    assert torch.allclose(zeros, torch.zeros_like(zeros), atol=1e-4)


def test_labels_keep_their_values_under_nearest_warps_and_their_sum_under_linear_ones():
    codes = torch.randint(0, 4, (1, 1, 6, 6, 6)).float()
    flow = torch.randn(1, 3, 6, 6, 6)
    assert set(warp(codes, flow, mode="nearest").unique().tolist()) <= {0.0, 1.0, 2.0, 3.0}
    members = torch.nn.functional.one_hot(codes[:, 0].long(), 4).movedim(-1, 1).float()
    assert torch.allclose(warp(members, flow).sum(1), torch.ones(1, 6, 6, 6), atol=1e-5)


def test_warping_by_a_composition_is_warping_twice():
    grid = torch.linspace(0, 1, 12)
    volume = (grid[:, None, None] + grid[:, None] * 2 + grid)[None, None]
    first, second = (0.5 * torch.randn(1, 3, 1, 1, 1).expand(1, 3, 12, 12, 12) for _ in range(2))
    twice, once = warp(warp(volume, first), second), warp(volume, compose(first, second))
    inner = (slice(None), slice(None), *(slice(3, 9),) * 3)
    assert torch.allclose(twice[inner], once[inner], atol=1e-4)


def test_an_integrated_field_does_not_fold_and_its_negative_undoes_it():
    torch.manual_seed(0)
    coarse = 6 * torch.randn(1, 3, 4, 4, 4)
    velocity = torch.nn.functional.interpolate(coarse, size=(24, 24, 24), mode="trilinear")
    velocity = velocity * torch.hann_window(24).view(24, 1, 1) * torch.hann_window(24).view(24, 1)
    flow, back = integrate(velocity), integrate(-velocity)
    assert float((jacobian_determinants(flow) <= 0).float().mean()) < 0.001
    assert float((jacobian_determinants(velocity) <= 0).float().mean()) > 0.005
    inner = (slice(None), slice(None), *(slice(6, 18),) * 3)
    assert float(compose(flow, back)[inner].abs().mean()) < 0.1


def test_determinants_of_no_flow_are_one_and_of_a_reflection_negative():
    shape = (5, 6, 7)
    assert torch.equal(jacobian_determinants(torch.zeros(1, 3, *shape)), torch.ones(1, 4, 5, 6))
    mirror = affine_flow(torch.diag(torch.tensor([1.0, 1.0, -1.0]))[None], shape)
    assert torch.allclose(jacobian_determinants(mirror), -torch.ones(1, 4, 5, 6), atol=1e-5)


def test_an_affine_flow_keeps_the_centre_and_the_identity_is_no_flow():
    shape = (5, 7, 9)
    assert float(affine_flow(torch.eye(3)[None], shape).abs().max()) == 0
    flow = affine_flow(2 * torch.eye(3)[None], shape)
    assert flow[0, :, 2, 3, 4].tolist() == [0, 0, 0]
    assert flow[0, :, 0, 0, 0].tolist() == [-2, -3, -4]
