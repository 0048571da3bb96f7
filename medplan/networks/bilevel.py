"""The two steps of the nested problem: segmentation below, registration along the hypergradient above.

And the authors' baseline, whose steps do not know of each other.

Paper: Bi-JROS, Fan et al., CVPR 2024. Official code (no licence file): read, not copied.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from medplan.method import Update
from medplan.networks.joint import Maps
from medplan.networks.pairing import Pair, Pairing
from medplan.networks.warp import warp

__all__ = ["hypergradient_factor", "step_apart", "step_registration", "step_segmentation"]


def step_segmentation(pairing: Pairing, maps: Maps, target: Tensor, update: Update) -> Tensor:
    """Step the segmentation decoder towards a target (B, K, Z, Y, X); return the loss.

    Args:
        maps: the encoder's maps of the image, without a graph.
    """
    loss = pairing.teach(maps, target)
    update.minimise(loss, "seg")
    return loss.detach()


def step_registration(
    pairing: Pairing,
    pair: Pair,
    pseudo: Tensor,
    leaf: Tensor,
    maps: Maps,
    update: Update,
    *,
    weights: Mapping[str, float],
    limit: float,
) -> dict[str, Tensor]:
    """Step the registration decoder along the hypergradient; return what is to be logged.

    The flows act on both objectives through two tensors only, the warped labels and the pseudo image. So the
    objectives are first differentiated with respect to these two, which frees the segmentation's part of the
    graph; the results are then multiplied with them, and one backward pass goes on from there to the flows.

    Args:
        pseudo: the pseudo image, differentiable with respect to the flows.
        leaf: the same values, cut off from the flows; without ``requires_grad`` it gets no gradient.
        maps: the encoder's maps of `leaf`, differentiable with respect to it.
        weights: of ``similarity``, ``smooth``, ``cycle`` and ``agreement``.
        limit: largest absolute value of c.
    """
    segmentation = pairing.network.segmentation
    segmentation.eval()
    warped = warp(pair.members, pair.to_image)
    label = warped.detach().requires_grad_()
    consistency = pairing.agree(label, pairing.probabilities(pair.image_maps, pair.size))
    share = weights["agreement"]
    *upper, label_upper = update.gradients(share * consistency, "seg", inputs=[label])
    consistency = consistency.detach()
    taught = pairing.agree(label, pairing.probabilities(maps, pair.size))
    inputs = [label, leaf] if leaf.requires_grad else [label]
    found = update.gradients(taught, "seg", inputs=inputs)
    lower, (label_lower, *image_lower) = found[: len(upper)], found[len(upper) :]
    taught = taught.detach()
    factor = hypergradient_factor(upper, lower, limit=limit)
    terms = pairing.both_ways(pair)
    images = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
    label_gradient = label_upper + factor * label_lower
    total = images + (label_gradient * warped).sum()
    if image_lower:
        total = total + factor * (image_lower[0] * pseudo).sum()
    update.minimise(total, "reg")
    # How much of the Dice is left in the gradient: near 0 where c is near -1 and the blend near 1, as both
    # objectives then cancel each other.
    left = label_gradient.norm() / label_upper.norm().clamp_min(1e-12)
    logged = {**terms, "registration": images + share * consistency, "agreement": consistency}
    logged |= {"segmentation": taught, "factor": factor, "left": left}
    return {name: value.detach() for name, value in logged.items()}


def step_apart(
    pairing: Pairing, pair: Pair, update: Update, weights: Mapping[str, float]
) -> dict[str, Tensor]:
    """Step registration from atlas to image, then segmentation on the image with the warped label.

    Args:
        weights: of ``similarity`` and ``smooth``; the agreement has 1.
    """
    terms = pairing.one_way(pair)
    warped = warp(pair.members, pair.to_image)
    answer = pairing.probabilities(pair.image_maps, pair.size)
    loss = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
    loss = loss + pairing.agree(warped, answer.detach())
    lower = pairing.agree(warped.detach(), answer)
    update.minimise(loss, "reg")
    update.minimise(lower, "seg")
    logged = {"loss": loss, "lower": lower, **terms}
    return {name: value.detach() for name, value in logged.items()}


def hypergradient_factor(upper: Sequence[Tensor], lower: Sequence[Tensor], *, limit: float) -> Tensor:
    """Return c = - <g_r, g_s> / <g_s, g_s>, at most `limit` in size; 0 where the lower gradient vanishes.

    Then ``d (upper + c lower) / d omega`` is the implicit gradient of the upper objective, if the Hessian of
    the lower one is replaced by the outer product of its gradient g_s.

    Args:
        upper, lower: gradients g_r and g_s of both objectives in the lower problem's parameters.

    Source: Bi-JROS, Fan et al., CVPR 2024, from the official code. Differs: 1e-12 in the denominator, and a
        limit.
    """
    upper_P, lower_P = (torch.cat([each.flatten() for each in found]) for found in (upper, lower))
    across, length = (upper_P * lower_P).sum(), lower_P.square().sum()
    return (-across / (length + 1e-12)).clamp(-limit, limit)
