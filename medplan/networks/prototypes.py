"""Few-shot segmentation by comparing features with prototypes of a labelled example; nothing is learnt here.

Source: Ouyang et al. 2020, arXiv:2007.09886 (adaptive local prototypes); Wang et al. 2019, arXiv:1908.06391
(prototypes and alignment). Official code of DenseMP, which uses both: read, not copied.
"""

# Shapes: B episodes, C features, N prototypes, Y X cells of the feature grid.

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from medplan.data.labels import IGNORE

__all__ = ["Classifier", "Prototypes", "Shrink", "alignment_loss", "episode_loss", "query_loss", "shrink"]

Shrink = Literal["area", "bilinear"]

SCALE = 20.0
THRESHOLD = 0.95
FOREGROUND_WINDOW = 4
MIN_NORM = 1e-4
MIN_MASS = 1e-5
BACKGROUND_WEIGHT = 0.05


@dataclass(frozen=True)
class Prototypes:
    """`vectors` (B, N, C), and which of them count: `valid` (B, N); the last one is the mean over the
    mask."""

    vectors: Tensor
    valid: Tensor

    def together(self) -> "Prototypes":
        """Return the prototypes of all B examples as those of one: several shots of a class."""
        return Prototypes(self.vectors.flatten(0, 1)[None], self.valid.flatten(0, 1)[None])


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """Scores foreground and background by cosine similarity to prototypes.

    Attributes:
        window: side, in cells, of the squares that local prototypes are averaged over; 4 in training, 2 in
            evaluation.
        local: False compares with the mean over the mask alone, for both classes (PANet).
        scale: inverse temperature of the cosines.
    """

    window: int
    local: bool = True
    scale: float = SCALE

    def foreground(self, features_BCYX: Tensor, mask_BYX: Tensor) -> Prototypes:
        """Return the mean over the mask (values 0 to 1), and local prototypes where the mask is large.

        Large means that it fills a square of 4 x 4 cells to 95 %, whatever `window` is.
        """
        local, is_inside = self._local(features_BCYX, mask_BYX)
        side = min(FOREGROUND_WINDOW, *mask_BYX.shape[-2:])
        is_large = F.avg_pool2d(mask_BYX[:, None], side).flatten(1).amax(1, keepdim=True) >= THRESHOLD
        valid = torch.cat([is_inside & is_large, torch.ones_like(is_large)], dim=1)
        return Prototypes(torch.cat([local, _mean(features_BCYX, mask_BYX)], dim=1), valid)

    def background(self, features_BCYX: Tensor, mask_BYX: Tensor) -> Prototypes:
        """Return local prototypes, or the mean over the mask where it fills no square.

        Differs: the original raises an error on such an example.
        """
        local, is_inside = self._local(features_BCYX, mask_BYX)
        valid = torch.cat([is_inside, ~is_inside.any(1, keepdim=True)], dim=1)
        return Prototypes(torch.cat([local, _mean(features_BCYX, mask_BYX)], dim=1), valid)

    def score(self, query_BCYX: Tensor, prototypes: Prototypes) -> Tensor:
        """Return (B, Y, X): scaled cosines with the prototypes, averaged with their own softmax as weights.

        Prototypes of one example (B = 1) serve any number of queries.
        """
        with _full_precision(query_BCYX):
            query, vectors = _unit(query_BCYX, 1), _unit(prototypes.vectors, 2)
            similarity = self.scale * torch.einsum(
                "bcyx,bnc->bnyx", query, vectors.expand(len(query), -1, -1)
            )
            absent = ~prototypes.valid[:, :, None, None]
            weight = similarity.masked_fill(absent, -torch.inf).softmax(1)
            scores: Tensor = (weight * similarity).sum(1)
            return scores

    def segment(
        self, query_BCYX: Tensor, support_BCYX: Tensor, mask_BYX: Tensor, background_BYX: Tensor
    ) -> Tensor:
        """Return scores (B, 2, Y, X) of the query, background first, from one example each."""
        behind = self.background(support_BCYX, background_BYX)
        front = self.foreground(support_BCYX, mask_BYX)
        return torch.stack([self.score(query_BCYX, behind), self.score(query_BCYX, front)], dim=1)

    def _local(self, features_BCYX: Tensor, mask_BYX: Tensor) -> tuple[Tensor, Tensor]:
        side = min(self.window, *mask_BYX.shape[-2:])
        vectors = F.avg_pool2d(features_BCYX, side).flatten(2).transpose(1, 2)
        is_inside = F.avg_pool2d(mask_BYX[:, None], side).flatten(1) > THRESHOLD
        return vectors, is_inside if self.local else torch.zeros_like(is_inside)


def shrink(mask_BYX: Tensor, shape: tuple[int, int], *, how: Shrink = "area") -> Tensor:
    """Bring masks from pixels to the feature grid; values 0 to 1.

    Args:
        how: ``area`` gives each cell the covered share of it. ``bilinear`` is the original's: it samples
            between pixels, so that a mask smaller than a cell may vanish.
    """
    if how == "area":
        return F.adaptive_avg_pool2d(mask_BYX[:, None], shape)[:, 0]
    return F.interpolate(mask_BYX[:, None], shape, mode="bilinear", align_corners=False)[:, 0]


def episode_loss(
    classifier: Classifier,
    support_BCYX: Tensor,
    query_BCYX: Tensor,
    support_label_BYX: Tensor,
    query_label_BYX: Tensor,
    *,
    shrink_by: Shrink = "area",
) -> dict[str, Tensor]:
    """Return ``loss``, its parts ``query`` and ``alignment``, and ``empty``, the share that did not count.

    An episode does not count whose example was moved out of its patch by a transform.

    Args:
        support_BCYX, query_BCYX: features.
        support_label_BYX, query_label_BYX: at pixels: 1, 0, or `IGNORE`.
        shrink_by: how masks come to the feature grid.
    """
    cells = (support_BCYX.shape[-2], support_BCYX.shape[-1])
    mask, behind = (
        shrink((support_label_BYX == value).to(support_BCYX.dtype), cells, how=shrink_by) for value in (1, 0)
    )
    scores = classifier.segment(query_BCYX, support_BCYX, mask, behind)
    segmentation = query_loss(scores, query_label_BYX)
    alignment = alignment_loss(classifier, scores, query_BCYX, support_BCYX, support_label_BYX)
    is_shown = (support_label_BYX == 1).flatten(1).any(1).to(scores.dtype)
    share = is_shown / is_shown.sum().clamp_min(1)
    first, second = ((loss * share).sum() for loss in (segmentation, alignment))
    return {"loss": first + second, "query": first, "alignment": second, "empty": 1 - is_shown.mean()}


def query_loss(scores_B2YX: Tensor, label_BYX: Tensor) -> Tensor:
    """Return (B,): cross-entropy at the pixels of the label, background weighted 0.05.

    Args:
        scores_B2YX: on the feature grid; enlarged bilinearly.
        label_BYX: 1, 0, or `IGNORE`.
    """
    return _cross_entropy(scores_B2YX, label_BYX, background_weight=BACKGROUND_WEIGHT)


def alignment_loss(
    classifier: Classifier, scores_B2YX: Tensor, query_BCYX: Tensor, support_BCYX: Tensor, label_BYX: Tensor
) -> Tensor:
    """Return (B,): segment the support with the predicted query as example, and compare with its label.

    Gradients flow through the features, not through the prediction. An empty prediction has a prototype of
    zeros, which scores 0 everywhere.

    Args:
        label_BYX: of the support, at pixels: 1, 0, or `IGNORE`.
    """
    predicted = scores_B2YX.argmax(1).to(query_BCYX.dtype)
    scores = classifier.segment(support_BCYX, query_BCYX, predicted, 1 - predicted)
    return _cross_entropy(scores, label_BYX, background_weight=1.0)


def _cross_entropy(scores_B2YX: Tensor, label_BYX: Tensor, *, background_weight: float) -> Tensor:
    label = label_BYX.long()
    logits = F.interpolate(scores_B2YX, label.shape[-2:], mode="bilinear", align_corners=False)
    weights = torch.tensor([background_weight, 1.0]).to(logits, non_blocking=True)
    loss = F.cross_entropy(logits, label, weights, ignore_index=IGNORE, reduction="none").flatten(1).sum(1)
    mass = background_weight * (label == 0).flatten(1).sum(1) + (label == 1).flatten(1).sum(1)
    return loss / mass.clamp_min(MIN_MASS)


def _mean(features_BCYX: Tensor, mask_BYX: Tensor) -> Tensor:
    total = (features_BCYX * mask_BYX[:, None]).sum((2, 3))
    return (total / (mask_BYX.sum((1, 2))[:, None] + MIN_MASS))[:, None]


def _unit(vectors: Tensor, dim: int) -> Tensor:
    vectors = vectors if vectors.dtype == torch.float64 else vectors.float()
    length: Tensor = torch.linalg.vector_norm(vectors, dim=dim, keepdim=True)
    return vectors / length.clamp_min(MIN_NORM)


def _full_precision(tensor: Tensor) -> AbstractContextManager[object]:
    """Cosines times 20 do not bear the three digits of bfloat16."""
    kind = tensor.device.type
    return nullcontext() if kind == "meta" else torch.autocast(kind, enabled=False)
