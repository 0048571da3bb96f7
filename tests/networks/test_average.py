"""The moving average of a network: what moves, what is copied, what is left, and who computes with it."""

import pytest
import torch
from torch import nn

from medplan.networks.average import MovingAverage


def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


@pytest.mark.parametrize("leaves_buffers", [False, True])
def test_it_moves_by_what_is_not_kept(leaves_buffers):
    network = make()
    average, before = MovingAverage(network), {k: v.clone() for k, v in network.state_dict().items()}
    network(torch.randn(8, 3))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1.0)
    average.update(network, decay=0.9, leaves_buffers=leaves_buffers)
    after, found = network.state_dict(), average.weights()
    for name, old in before.items():
        if leaves_buffers and name not in dict(network.named_parameters()):
            assert torch.equal(found[name], old), name
        elif old.is_floating_point():
            assert torch.allclose(found[name], 0.9 * old + 0.1 * after[name]), name
        else:
            assert torch.equal(found[name], after[name]) and not torch.equal(old, after[name]), name


def test_a_network_without_weights_has_nothing_to_move():
    MovingAverage(nn.Identity()).update(nn.Identity(), decay=0.9)


def test_no_optimiser_finds_it():
    assert not list(MovingAverage(make()).parameters())


def test_it_computes_with_its_own_weights_and_leaves_the_network_alone():
    network = make().eval()
    average, batch = MovingAverage(network), torch.randn(5, 3)
    before = network(batch)
    with torch.no_grad():
        network[0].weight.zero_()
    assert torch.equal(average.call(network, batch), before)
    assert torch.equal(average.applied(network)(batch), before)
    assert not network[0].weight.any()


def test_its_weights_are_found_in_the_state_of_whoever_keeps_it():
    network = make()
    keeper = nn.ModuleDict({"network": network, "average": MovingAverage(network)})
    saved = MovingAverage.saved(keeper.state_dict(), "average")
    assert saved.keys() == network.state_dict().keys()
    assert all(torch.equal(saved[name], value) for name, value in network.state_dict().items())
