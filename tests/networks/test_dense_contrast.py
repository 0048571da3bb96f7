"""Dense contrast: the key side follows, the queues turn round, and equal views match themselves."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from medplan.networks.dense_contrast import DenseContrast, info_nce, match
from medplan.networks.dilated_resnet import SIZES, DilatedResNet


class Body(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)

    def forward(self, x, output_stride=1):
        return self.norm(self.conv(x))


def make(**changes):
    torch.manual_seed(0)
    body = Body()
    return body, DenseContrast(body, channels=8, **{"queue_length": 6, "hidden": 8, **changes})


def step(body, contrast, number=4):
    losses = contrast.losses(
        body, torch.randn(number, 3, 6, 6), torch.randn(number, 3, 6, 6), output_stride=1
    )
    return sum(losses)


def test_equal_views_match_cell_by_cell_with_cosine_one():
    features = torch.randn(2, 5, 4, 4)
    best = match(features, features)
    assert torch.equal(best, torch.arange(16).expand(2, -1))
    unit = F.normalize(features.flatten(2), dim=1)
    assert torch.allclose((unit * unit.gather(2, best[:, None].expand(-1, 5, -1))).sum(1), torch.ones(2, 16))


def test_the_key_side_has_no_gradient_and_moves_by_the_formula():
    body, contrast = make(momentum=0.9)
    loss = step(body, contrast)
    learned = [*body.parameters(), *contrast.head.parameters()]
    assert all(g is not None for g in torch.autograd.grad(loss, learned, allow_unused=True))
    assert {id(p) for p in contrast.parameters()} == {id(p) for p in contrast.head.parameters()}
    key = contrast.key_backbone.get_buffer("conv/weight")
    before = key.clone()
    with torch.no_grad():
        body.conv.weight += 1
    contrast.trail(body)
    assert torch.allclose(key, 0.9 * before + 0.1 * body.conv.weight)


def test_momentum_one_leaves_the_key_weights_alone():
    body, contrast = make(momentum=1.0)
    key = contrast.key_backbone.get_buffer("conv/weight")
    before = key.clone()
    with torch.no_grad():
        body.conv.weight += 1
    step(body, contrast)
    assert torch.equal(key, before)


@pytest.mark.parametrize(
    ("length", "number", "steps"), [(6, 4, 3), (5, 2, 7), (4, 4, 2), (3, 1, 5), (2, 4, 2)]
)
def test_the_queue_turns_round_whatever_its_length(length, number, steps):
    body, contrast = make(queue_length=length)
    for _ in range(steps):
        loss = step(body, contrast, number)
        torch.autograd.grad(loss, body.conv.weight)
        queue = contrast.get_buffer("whole_queue")
        assert torch.allclose(queue.norm(dim=1), torch.ones(length), atol=1e-5)
    assert int(contrast.get_buffer("place")) == steps * min(number, length) % length


def test_new_keys_take_the_oldest_places():
    body, contrast = make()
    before = contrast.get_buffer("dense_queue").clone()
    step(body, contrast)
    after = contrast.get_buffer("dense_queue")
    changed = (before != after).any(1).tolist()
    assert changed == [True] * 4 + [False] * 2


def test_keys_are_normalised_in_random_groups_and_come_back_in_order():
    body, contrast = make(groups=2)
    pictures = torch.randn(6, 3, 6, 6)
    body.eval()
    with torch.no_grad():
        found = contrast._keys(body, pictures, 1)
        assert torch.allclose(found, contrast.key_backbone.call(body, pictures, 1), atol=1e-6)
    body.train()
    with torch.no_grad():
        draws = [contrast._keys(body, pictures, 1) for _ in range(5)]
    assert not all(torch.allclose(draw, draws[0]) for draw in draws)


def test_info_nce_is_the_cross_entropy_of_finding_the_key():
    query = F.normalize(torch.randn(3, 4), dim=1)
    queue = F.normalize(torch.randn(5, 4), dim=1)
    terms = []
    for one in query:
        logits = torch.cat([(one @ one)[None], queue @ one]) / 0.2
        terms.append(torch.logsumexp(logits, 0) - logits[0])
    assert torch.allclose(info_nce(query, query, queue), torch.stack(terms).mean())


@pytest.mark.parametrize("stride", [8, 16, 32])
def test_the_output_stride_changes_the_map_and_not_the_weights(stride):
    network = DilatedResNet(SIZES["tiny"])
    found = network(torch.randn(1, 3, 64, 96), stride)
    assert found.shape == (1, SIZES["tiny"].out_channels, 64 // stride, 96 // stride)


def test_the_loss_rises_while_real_keys_replace_random_ones_though_nothing_is_learnt_or_lost():
    """Random vectors are no rivals of a key: the first losses compare with no later ones."""
    body, contrast = make(queue_length=32, momentum=1.0)
    pictures, seen = torch.rand(32, 3, 6, 6), []
    with torch.no_grad():
        for start in (0, 8, 16, 24):
            batch = pictures[start : start + 8]
            seen.append(float(contrast.losses(body, batch, batch, output_stride=1)[0]))
    assert seen == sorted(seen) and seen[-1] > seen[0] + 0.2
