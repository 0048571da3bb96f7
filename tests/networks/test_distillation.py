"""Mutual exchange of two encoders, and the prompted decoder."""

import pytest
import torch
from torch import nn

from medplan.networks.distillation import PromptedDecoder, exchange
from medplan.networks.joint import UNetEncoder


def two(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), nn.Sequential(
        nn.Linear(3, 2), nn.BatchNorm1d(2)
    )


def weights(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def test_keeping_everything_changes_nothing():
    general, medical = two()
    before = weights(general), weights(medical)
    exchange(general, medical, keep=1.0)
    for module, old in zip((general, medical), before, strict=True):
        assert all(torch.equal(tensor, old[name]) for name, tensor in module.state_dict().items())


def test_keeping_nothing_gives_the_medical_weights_to_both():
    general, medical = two()
    wanted = weights(medical)
    exchange(general, medical, keep=0.0)
    for module in (general, medical):
        assert all(torch.allclose(tensor, wanted[name]) for name, tensor in module.state_dict().items())


def test_the_general_one_goes_first_and_the_medical_one_meets_its_new_weights():
    general, medical = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    nn.init.constant_(general.weight, 1.0)
    nn.init.constant_(medical.weight, 3.0)
    assert exchange(general, medical, keep=0.75) == pytest.approx(2.0)
    assert general.weight.item() == pytest.approx(1.5)
    assert medical.weight.item() == pytest.approx(0.75 * 3 + 0.25 * 1.5)


def test_counters_of_batches_are_left():
    general, medical = two()
    general[1].num_batches_tracked.fill_(7)
    exchange(general, medical, keep=0.5)
    assert int(general[1].num_batches_tracked) == 7 and int(medical[1].num_batches_tracked) == 0


@torch.no_grad()
def test_at_first_a_prompt_changes_nothing_and_then_it_does():
    encoder = UNetEncoder(1, (4, 6, 8)).eval()
    decoder = PromptedDecoder(encoder, 3).eval()
    maps = encoder(torch.rand(1, 1, 8, 12, 8))
    plain = decoder.decoder(maps)
    prompts = torch.rand(1, 3, 8, 12, 8)
    assert torch.allclose(decoder(maps, prompts), plain, atol=1e-6)
    nn.init.ones_(decoder.prompts[0].weight)
    assert not torch.allclose(decoder(maps, prompts), plain, atol=1e-2)
