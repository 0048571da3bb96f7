"""Networks with task tokens: what the logits may and may not depend on."""

import pytest
import torch

from medplan.networks.medformer import MedFormer
from medplan.networks.prior_transfer import translate
from medplan.networks.prior_unet import PriorShape, PriorUNet
from medplan.runtime import Runtime

KINDS = [PriorUNet, MedFormer]
over_kinds = pytest.mark.parametrize("kind", KINDS)
IDS, MODALITY = torch.tensor([[0, 2, 3]]), torch.tensor([1])


def build(kind, **numbers):
    torch.manual_seed(0)
    small = {"channels": (4, 8, 8, 16), "depths": (1, 1, 1), "head_size": 4, "num_tasks": 5, "num_tokens": 2}
    return kind(PriorShape(**{**small, "num_modalities": 2, **numbers})).double().eval()


def image(batch=1, shape=(16, 16, 24)):
    return torch.randn(batch, 1, *shape, generator=torch.Generator().manual_seed(1)).double()


@over_kinds
@torch.no_grad()
def test_empty_slots_change_nothing(kind):
    network = build(kind)
    plain = network(image(), IDS, MODALITY).logits
    padded = network(image(), torch.tensor([[0, 2, 3, -1, -1, -1]]), MODALITY).logits
    assert torch.allclose(plain, padded[:, :3], atol=1e-10)
    looked_at = build(kind, masks_null=False)
    released = looked_at(image(), torch.tensor([[0, 2, 3, -1, -1, -1]]), MODALITY).logits
    assert not torch.allclose(plain, released[:, :3], atol=1e-3)


@over_kinds
@torch.no_grad()
def test_the_order_of_tasks_permutes_the_outputs_and_nothing_else(kind):
    network, order = build(kind), [2, 0, 1]
    plain = network(image(), IDS, MODALITY).logits
    assert torch.allclose(network(image(), IDS[:, order], MODALITY).logits, plain[:, order], atol=1e-10)


@over_kinds
@torch.no_grad()
def test_a_task_asked_twice_is_answered_twice_alike(kind):
    twice = build(kind)(image(), torch.tensor([[1, 1]]), MODALITY).logits
    assert torch.allclose(twice[:, 0], twice[:, 1], atol=1e-10)


@over_kinds
@torch.no_grad()
def test_samples_do_not_see_each_other_and_nothing_at_all_may_be_asked(kind):
    network, both = build(kind), image(2)
    ids = torch.tensor([[0, 2, 3], [4, -1, -1]])
    together = network(both, ids, torch.tensor([1, -1])).logits
    alone = network(both[1:], ids[1:, :1], torch.tensor([-1])).logits
    assert torch.allclose(together[1, :1], alone[0], atol=1e-10)
    nothing = network(both, torch.full((2, 2), -1), torch.tensor([0, 0])).logits
    assert nothing.isfinite().all()


@over_kinds
def test_the_null_row_and_rows_not_asked_for_have_no_gradient(kind):
    network = build(kind)
    output = network(image(), torch.tensor([[0, 2, -1]]), MODALITY)
    output.logits[:, :2].square().sum().backward()
    for pool in network.pools():
        reached = pool.tasks.grad.abs().sum(1) > 0
        assert reached.tolist() == [True, False, True, False, False, False]


@over_kinds
def test_recomputing_changes_neither_logits_nor_gradients(kind):
    gradients = []
    for recomputes in (False, True):
        network = build(kind, recomputes=recomputes).train()
        network(image(), IDS, MODALITY).logits.square().mean().backward()
        gradients.append([parameter.grad for parameter in network.parameters() if parameter.grad is not None])
    assert all(torch.allclose(one, two, atol=1e-12) for one, two in zip(*gradients, strict=True))


@over_kinds
def test_recomputing_is_possible_in_the_precision_that_the_runtime_chooses(kind):
    numbers = {"channels": (4, 8, 8, 8, 16), "depths": (1,) * 5}
    gradients = []
    for recomputes in (False, True):
        network = build(kind, recomputes=recomputes, **numbers).float().train()
        # Two voxels at the coarsest level: the runtime computes these in float32 on the CPU.
        with Runtime.choose("cpu").autocast():
            loss = network(image(shape=(32, 32, 32)).float(), IDS, MODALITY).logits.float().square().mean()
            parameters = list(network.parameters())
            gradients.append(torch.autograd.grad(loss, parameters, allow_unused=True))
    assert all(one is None or torch.equal(one, two) for one, two in zip(*gradients, strict=True))


@over_kinds
@torch.no_grad()
def test_a_task_may_be_added_without_a_change_to_the_others(kind):
    before, after = build(kind), build(kind, num_added=2, num_modalities=3)
    names, more = tuple("abcde"), (*"abcde", "new", "newer")
    state = translate(
        before.state_dict(), after, tasks=(names, more), modalities=(("CT", "T1"), ("CT", "T1", "LGE"))
    )
    after.load_state_dict(state)
    assert torch.equal(before(image(), IDS, MODALITY).logits, after(image(), IDS, MODALITY).logits)
    assert after(image(), torch.tensor([[5, 6]]), torch.tensor([2])).logits.isfinite().all()


@over_kinds
@torch.no_grad()
def test_rows_travel_by_name_and_a_new_modality_begins_as_the_unknown_one(kind):
    before, after = build(kind), build(kind, num_tasks=2, num_modalities=2)
    names = tuple("abcde")
    state = translate(
        before.state_dict(), after, tasks=(names, ("d", "a")), modalities=(("CT", "T1"), ("LGE", "CT"))
    )
    after.load_state_dict(state)
    theirs = before(image(), torch.tensor([[3, 0]]), torch.tensor([0])).logits
    assert torch.equal(theirs, after(image(), torch.tensor([[0, 1]]), torch.tensor([1])).logits)
    unknown = before(image(), torch.tensor([[3, 0]]), torch.tensor([-1])).logits
    assert torch.equal(unknown, after(image(), torch.tensor([[0, 1]]), torch.tensor([0])).logits)


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="depths"):
        PriorShape(depths=(1, 2))
    with pytest.raises(ValueError, match="head_size"):
        PriorShape(head_size=24)
