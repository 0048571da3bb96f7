"""SAM on volumes, slice by slice."""

import pytest
import torch

from medplan.networks.encoders import build_network
from medplan.networks.sam import SAM_VARIANTS, SamVariant
from medplan.networks.slices import SliceEncoder


@pytest.fixture
def encoder(monkeypatch):
    monkeypatch.setitem(SAM_VARIANTS, "tiny", SamVariant(width=24, depth=2, heads=2, global_blocks=(1,)))
    torch.manual_seed(0)
    return SliceEncoder(1, variant="tiny", side=32, at_once=3).eval()


@torch.no_grad()
def test_slices_are_encoded_by_themselves_in_order_along_z(encoder):
    volume = torch.rand(1, 1, 5, 32, 32)
    (maps,) = encoder(volume)
    assert maps.shape == (1, 256, 5, 2, 2)
    for z in range(5):
        alone = encoder.vit(volume[:, :, z].expand(-1, 3, -1, -1))
        assert torch.allclose(maps[:, :, z], alone, atol=1e-4)


@torch.no_grad()
def test_two_volumes_are_two_single_ones_and_channels_lie_behind_each_other(encoder):
    volumes = torch.rand(2, 1, 3, 32, 32)
    together = encoder(volumes)[0]
    assert torch.allclose(together, torch.cat([encoder(each[None])[0] for each in volumes]), atol=1e-4)
    channels = encoder(volumes.transpose(0, 1))[0]
    assert torch.allclose(channels, together.flatten(0, 1)[None], atol=1e-4)


@torch.no_grad()
def test_decoders_climb_back_to_sizes_that_sam_does_not_take(encoder):
    network = build_network(encoder, 4).eval()
    size = (3, 20, 28)
    maps = network.encode(torch.rand(1, 1, *size))
    assert network.segment(maps, size).shape == (1, 4, *size)
    assert network.flow(maps, maps, size).abs().max() < 1e-2
