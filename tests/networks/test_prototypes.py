"""Prototypes and losses: invariances, empty and full masks, several shots."""

import numpy as np
import pytest
import torch

from medplan.data.labels import IGNORE
from medplan.networks.prototypes import (
    Classifier,
    Prototypes,
    alignment_loss,
    episode_loss,
    query_loss,
    shrink,
)


@pytest.fixture
def features():
    torch.manual_seed(0)
    return torch.randn(2, 6, 8, 8, dtype=torch.float64)


def mask_of(*rows_and_columns, size=8):
    mask = torch.zeros(1, size, size, dtype=torch.float64)
    top, bottom, left, right = rows_and_columns
    mask[:, top:bottom, left:right] = 1
    return mask


@pytest.mark.parametrize("local", [True, False])
@pytest.mark.parametrize("box", [(0, 4, 0, 4), (2, 3, 2, 3), (0, 8, 0, 5)])
def test_pixels_outside_the_mask_do_not_change_its_prototypes(features, box, local):
    classifier, mask = Classifier(window=2, local=local), mask_of(*box)
    one = classifier.foreground(features[:1], mask)
    two = classifier.foreground(features[:1] + 7 * (1 - mask[:, None]), mask)
    assert torch.equal(one.valid, two.valid)
    assert torch.allclose(one.vectors[one.valid], two.vectors[two.valid])


def test_swapped_masks_swap_the_scores_of_global_prototypes(features):
    classifier, mask = Classifier(window=4, local=False), mask_of(1, 5, 2, 7)
    query, support = features[:1], features[1:]
    one = classifier.segment(query, support, mask, 1 - mask)
    two = classifier.segment(query, support, 1 - mask, mask)
    assert torch.allclose(one, two.flip(1))


def test_a_naive_loop_gives_the_same_scores(features):
    """Cell by cell, as the paper words it."""
    classifier, mask = Classifier(window=2), mask_of(0, 4, 0, 6)
    query, support = features[:1], features[1:]

    def naive(mask, with_global):
        found = []
        for y in range(0, 8, 2):
            for x in range(0, 8, 2):
                if mask[0, y : y + 2, x : x + 2].mean() > 0.95:
                    found.append(support[0, :, y : y + 2, x : x + 2].mean((1, 2)))
        if with_global:
            found.append((support[0] * mask).sum((1, 2)) / (mask.sum() + 1e-5))
        scores = torch.zeros(8, 8, dtype=torch.float64)
        for y, x in np.ndindex(8, 8):
            cosines = [torch.cosine_similarity(query[0, :, y, x], one, dim=0) for one in found]
            similarity = 20 * torch.stack(cosines)
            scores[y, x] = (similarity.softmax(0) * similarity).sum()
        return scores

    found = classifier.segment(query, support, mask, 1 - mask)[0]
    assert torch.allclose(found[1], naive(mask, True)) and torch.allclose(found[0], naive(1 - mask, False))


def test_a_small_mask_has_the_global_prototype_alone(features):
    found = Classifier(window=1).foreground(features[:1], mask_of(2, 4, 2, 4))
    assert found.valid[0, -1] and found.valid.sum() == 1


@pytest.mark.parametrize("mask", [torch.ones(1, 8, 8), torch.full((1, 8, 8), 0.9), torch.zeros(1, 8, 8)])
def test_no_background_cell_or_no_foreground_is_no_failure(features, mask):
    classifier = Classifier(window=4)
    features = features.clone().requires_grad_()
    scores = classifier.segment(features[:1], features[1:], mask.double(), 1 - mask.double())
    label = mask.round().expand(1, 8, 8)
    loss = query_loss(scores, label) + alignment_loss(classifier, scores, features[:1], features[1:], label)
    (gradient,) = torch.autograd.grad(loss.sum(), features)
    assert scores.isfinite().all() and gradient.isfinite().all()


def test_a_mask_between_the_samples_survives_shrinking_by_area():
    mask = mask_of(101, 104, 99, 103, size=256)
    assert shrink(mask, (32, 32), how="bilinear").sum() < shrink(mask, (32, 32)).sum()
    assert shrink(mask, (32, 32)).sum() * 64 == pytest.approx(12)
    vanishing = mask_of(16, 19, 16, 19, size=256)
    assert shrink(vanishing, (32, 32), how="bilinear").sum() == 0 < shrink(vanishing, (32, 32)).sum()


def test_the_same_shot_twice_is_that_shot(features):
    classifier, mask = Classifier(window=2), mask_of(0, 4, 0, 4)
    one = classifier.foreground(features[:1], mask)
    twice = Prototypes(one.vectors.repeat(2, 1, 1), one.valid.repeat(2, 1)).together()
    assert torch.allclose(classifier.score(features, one), classifier.score(features, twice))


def test_the_query_loss_of_a_batch_is_that_of_its_elements(features):
    scores = features[:, :2]
    label = torch.randint(-1, 2, (2, 16, 16))
    whole = query_loss(scores, label)
    assert torch.allclose(whole, torch.cat([query_loss(scores[n : n + 1], label[n : n + 1]) for n in (0, 1)]))
    nothing = torch.full((2, 16, 16), IGNORE)
    assert (query_loss(scores, nothing) == 0).all()


def test_background_weighs_a_twentieth(features):
    scores, label = features[:, :2], torch.randint(-1, 2, (2, 8, 8))
    for found, logits, codes in zip(query_loss(scores, label), scores, label, strict=True):
        losses = {code: -logits.log_softmax(0)[code][codes == code] for code in (0, 1)}
        total = 0.05 * losses[0].sum() + losses[1].sum()
        assert found == pytest.approx(float(total / (0.05 * len(losses[0]) + len(losses[1]))))


def test_an_episode_whose_example_shows_nothing_does_not_count(features):
    shown, wanted = torch.zeros(2, 2, 16, 16, dtype=torch.int64)
    shown[0, :9, :9] = wanted[:, 3:12, 2:8] = 1
    classifier, query = Classifier(window=2), features.flip(0)
    both = episode_loss(classifier, features, query, shown, wanted)
    alone = episode_loss(classifier, features[:1], query[:1], shown[:1], wanted[:1])
    assert both["loss"] == pytest.approx(float(alone["loss"]))
    assert (both["empty"], alone["empty"]) == (0.5, 0)


def test_gradients_do_not_flow_through_the_prediction(features):
    scores = features[:1, :2].clone().requires_grad_()
    loss = alignment_loss(Classifier(window=4), scores, features[:1], features[1:], torch.ones(1, 8, 8))
    assert not loss.requires_grad
