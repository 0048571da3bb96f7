"""Gradients of two nested problems that share the parameters of the lower one."""

from collections.abc import Sequence

import torch
from torch import Tensor

from medplan.method import Update
from medplan.networks.warp import full_precision

__all__ = ["differentiate", "hypergradient_factor"]


def differentiate(
    loss: Tensor, parameters: Sequence[Tensor], inputs: Sequence[Tensor], update: Update, name: str
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the gradients of a loss with respect to parameters and to other tensors, from one backward pass.

    Args:
        parameters: those of the optimiser `name`, in its order; their gradients are averaged over the ranks.
        inputs: tensors that the loss depends on; their gradients are those of this rank.
    """
    wanted = [*parameters, *inputs]
    if loss.is_meta:
        # What is measured without values is not computed back: its memory is known from the way forward.
        found: Sequence[Tensor] = [torch.zeros_like(tensor) for tensor in wanted]
    else:
        with full_precision(loss):
            found = torch.autograd.grad(loss, wanted)
    own, others = found[: len(parameters)], found[len(parameters) :]
    linear = loss.new_zeros(())
    for parameter, gradient in zip(parameters, own, strict=True):
        linear = linear + (parameter * gradient).sum()
    # `Update` averages the gradients of losses. The gradient of this sum is `own`, so that is averaged.
    return update.gradients(linear, name), list(others)


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
