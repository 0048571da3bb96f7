"""The optimisers of methods that leave the choice to the plan."""

from collections.abc import Iterable
from typing import Any, Literal

from torch.optim import SGD, AdamW, Optimizer

__all__ = ["OptimizerName", "adamw_or_sgd"]

OptimizerName = Literal["adamw", "sgd"]


def adamw_or_sgd(
    name: OptimizerName,
    parameters: Iterable[Any],
    *,
    lr: float,
    weight_decay: float,
    momentum: float,
    nesterov: bool = False,
) -> Optimizer:
    """Return AdamW, or SGD with momentum.

    Args:
        name: which of the two.
        parameters: tensors, or groups of them as `torch.optim.Optimizer` takes them.
        momentum: of SGD, in [0, 1).
        nesterov: whether it is Nesterov's.
    """
    if name == "adamw":
        return AdamW(parameters, lr, weight_decay=weight_decay)
    return SGD(parameters, lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov)
