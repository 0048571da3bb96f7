"""The optimisers that convolutional networks learn with from scratch."""

from collections.abc import Iterable
from typing import Any, Literal

from torch.optim import SGD, AdamW, Optimizer

from medplan.plan.schema import Training

__all__ = ["OptimizerName", "adamw_or_sgd"]

OptimizerName = Literal["adamw", "sgd"]


def adamw_or_sgd(
    name: OptimizerName, parameters: Iterable[Any], training: Training, *, momentum: float
) -> Optimizer:
    """Return AdamW, or SGD with Nesterov's momentum.

    Args:
        name: which of the two.
        parameters: tensors, or groups of them as `torch.optim.Optimizer` takes them.
        training: gives learning rate and weight decay.
        momentum: of SGD, in [0, 1).
    """
    lr, decay = training.lr, training.weight_decay
    if name == "adamw":
        return AdamW(parameters, lr, weight_decay=decay)
    return SGD(parameters, lr, momentum=momentum, weight_decay=decay, nesterov=momentum > 0)
