import torch

from medplan.data.labels import IGNORE
from medplan.learning.pseudo_labels import pseudo_labels, weighted_cross_entropy


def test_a_batch_without_annotation_gives_a_loss_of_zero():
    logits = torch.randn(2, 3, 1, 4, 4)
    assert weighted_cross_entropy(logits, torch.full((2, 1, 4, 4), IGNORE)) == 0


def test_pseudo_labels_below_the_threshold_do_not_count():
    logits = torch.tensor([[2.0, 0.1], [0.0, 0.0]]).view(1, 2, 1, 1, 2)
    assert pseudo_labels(logits, threshold=0.7).flatten().tolist() == [0, IGNORE]
    assert pseudo_labels(logits).flatten().tolist() == [0, 0]
