"""LAMB, which lets every weight tensor move by a part of its own length."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

__all__ = ["Lamb"]


class Lamb(Optimizer):
    """Layer-wise adaptive moments for batch training.

    With m and v the bias-corrected moments of Adam and r = m / (sqrt(v) + eps) + weight_decay w, every tensor
    w moves by lr |w| / |r| r; by lr r where |w| or |r| is 0.

    Args:
        params: tensors, or groups of them as `torch.optim.Optimizer` takes them.
        lr: learning rate.
        betas: decay of the first and second moment.
        eps: added to the root of the second moment.
        weight_decay: decoupled, inside the length that is adapted.

    Source: You et al. 2020, arXiv:1904.00962, algorithm 2, with phi(z) = z.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 2e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            moved = [parameter for parameter in group["params"] if parameter.grad is not None]
            if moved:
                group["num_steps"] = group.get("num_steps", 0) + 1
                self._move(moved, group)
        return loss

    def _move(self, moved: list[Tensor], group: dict[str, Any]) -> None:
        first_decay, second_decay = group["betas"]
        gradients = [parameter.grad for parameter in moved if parameter.grad is not None]
        for parameter in moved:
            if not self.state[parameter]:
                self.state[parameter]["mean"] = torch.zeros_like(parameter)
                self.state[parameter]["square"] = torch.zeros_like(parameter)
        means = [self.state[parameter]["mean"] for parameter in moved]
        squares = [self.state[parameter]["square"] for parameter in moved]
        torch._foreach_lerp_(means, gradients, 1 - first_decay)
        torch._foreach_mul_(squares, second_decay)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - second_decay)
        steps = group["num_steps"]
        scales = torch._foreach_sqrt(squares)
        torch._foreach_div_(scales, (1 - second_decay**steps) ** 0.5)
        torch._foreach_add_(scales, group["eps"])
        ways = torch._foreach_div(means, 1 - first_decay**steps)
        torch._foreach_div_(ways, scales)
        torch._foreach_add_(ways, moved, alpha=group["weight_decay"])
        lengths = torch.stack(torch._foreach_norm(moved))
        strides = torch.stack(torch._foreach_norm(ways))
        # On the device and without looking at values, so that a step waits for nothing.
        trust = torch.where((lengths > 0) & (strides > 0), lengths / strides.clamp_min(1e-30), 1.0)
        torch._foreach_mul_(ways, list((trust * -group["lr"]).unbind()))
        torch._foreach_add_(moved, ways)
