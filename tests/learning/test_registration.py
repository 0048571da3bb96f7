"""What registration is judged by."""

import pytest
import torch
from torch.nn import functional as F

from medplan.learning.registration import (
    agreement,
    field_quality,
    local_correlation,
    smoothness,
    window_sums,
)


def noise(seed, shape=(1, 1, 14, 12, 13)):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def test_local_correlation_is_symmetric_and_minus_one_on_equal_noise():
    first, second = noise(0), noise(1)
    assert torch.allclose(local_correlation(first, second), local_correlation(second, first))
    assert local_correlation(first, first) == pytest.approx(-1, abs=1e-3)
    assert local_correlation(first, 3 * first + 1) == pytest.approx(-1, abs=1e-3)
    assert local_correlation(first, -first) == pytest.approx(-1, abs=1e-3)
    assert -0.02 < local_correlation(first, second) <= 0


@pytest.mark.parametrize("values", [(0.0, 0.0), (0.3, 0.6), (1.0, 0.0), (100.0, 7.0)])
def test_constant_images_do_not_correlate_and_stay_finite(values):
    first, second = (torch.full((1, 1, 12, 12, 12), value, requires_grad=True) for value in values)
    loss = local_correlation(first, second)
    assert abs(float(loss.detach())) < 1e-3
    assert all(g.isfinite().all() for g in torch.autograd.grad(loss, [first, second]))


def test_zeros_beyond_the_border_make_constant_images_correlate_as_officially():
    constant = torch.ones(1, 1, 12, 12, 12, dtype=torch.float64)
    assert local_correlation(0.3 * constant, 0.6 * constant, compat=True) < -0.5


def test_window_sums_equal_a_convolution_with_ones_and_so_do_their_gradients():
    volumes = torch.rand(2, 7, 6, 3, dtype=torch.float64, requires_grad=True)
    ones = torch.ones(1, 1, 5, 5, 5, dtype=torch.float64)
    expected = F.conv3d(volumes[:, None], ones, padding=2)[:, 0]
    assert torch.allclose(window_sums(volumes, 5), expected)
    assert torch.autograd.gradcheck(
        lambda x: window_sums(x, 3), volumes[:1, :4, :3, :3].detach().requires_grad_()
    )


def test_equal_memberships_agree_fully_and_absent_classes_count_nothing():
    codes = torch.randint(0, 3, (2, 5, 5, 5))
    members = F.one_hot(codes, 3).movedim(-1, 1).float()
    assert agreement(members, members) == pytest.approx(-1)
    padded = F.one_hot(codes, 6).movedim(-1, 1).float()
    assert agreement(padded, padded) == pytest.approx(-0.5)
    assert agreement(members, members.roll(1, dims=1)) == pytest.approx(0)


def test_smoothness_is_zero_for_shifts_and_the_squared_slope_for_ramps():
    assert smoothness(torch.ones(1, 3, 4, 5, 6)) == 0
    ramp = torch.zeros(1, 3, 4, 4, 4)
    ramp[:, 0] = 2 * torch.arange(4.0).view(4, 1, 1)
    # A slope of 2 along one of three axes, in one of three channels.
    assert smoothness(ramp) == pytest.approx(4 / 9)


def test_a_slice_is_as_smooth_as_a_volume_of_its_copies():
    flow = noise(3, (2, 3, 1, 6, 7))
    assert smoothness(flow) == pytest.approx(float(smoothness(flow.expand(2, 3, 4, 6, 7))))


def test_quality_of_a_field_names_folding():
    still = field_quality(torch.zeros(1, 3, 5, 5, 5))
    assert still["folding_percent"] == 0 and still["log_jacobian_std"] == 0
    wild = field_quality(5 * torch.randn(1, 3, 8, 8, 8))
    assert wild["folding_percent"] > 10 and wild["mean_displacement_voxels"] > 5
