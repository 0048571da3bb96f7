"""Gradients of two nested problems that share the parameters of the lower one."""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["hypergradient_factor"]


def hypergradient_factor(upper: Sequence[Tensor], lower: Sequence[Tensor], *, limit: float) -> Tensor:
    """Return c = - <g_r, g_s> / <g_s, g_s>, at most `limit` in size; 0 where the lower gradient vanishes.

    Then ``d (upper + c lower) / d omega`` is the implicit gradient of the upper objective, if the Hessian of
    the lower one is replaced by the outer product of its gradient g_s.

    Args:
        upper, lower: gradients g_r and g_s of both objectives in the lower problem's parameters.

    Source: Bi-JROS, Fan et al., CVPR 2024, from the official code. Differs: 1e-12 in the denominator, and a
        limit.
    """
    across = torch.stack([(a * b).sum() for a, b in zip(upper, lower, strict=True)]).sum()
    length = torch.stack([b.square().sum() for b in lower]).sum()
    return (-across / (length + 1e-12)).clamp(-limit, limit)
