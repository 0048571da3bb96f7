"""Optimiser steps: the one place for averaging over ranks, clipping, the finite check and the step."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from medplan.errors import MethodError
from medplan.method import Phase, Progress
from medplan.runtime import Runtime

__all__ = ["GradientUpdate"]


class GradientUpdate:
    """Implements `medplan.method.Update` for the optimisers of one phase.

    Gradients are taken with `torch.autograd.grad` for the parameters of one optimiser and averaged over ranks
    here, because a method may combine gradients of several losses before it steps; wrappers that hook into
    ``backward`` do not see those.

    Args:
        optimizers: by name, with the learning rates that the schedule multiplies.
        phase: gives the schedule, and its name to error messages.
        clip_norm: largest L2 norm of the gradients of one optimiser; 12 as in nnU-Net.
    """

    def __init__(
        self, optimizers: Mapping[str, Optimizer], *, phase: Phase, runtime: Runtime, clip_norm: float = 12.0
    ) -> None:
        self._optimizers = dict(optimizers)
        self._parameters = {
            name: [parameter for group in optimizer.param_groups for parameter in group["params"]]
            for name, optimizer in self._optimizers.items()
        }
        self._base_lr = {
            name: [float(group["lr"]) for group in optimizer.param_groups]
            for name, optimizer in self._optimizers.items()
        }
        self._phase, self._runtime, self._clip_norm = phase, runtime, clip_norm
        self._at = Progress(phase=phase.name, step=0, num_steps=phase.num_steps)
        self._cases: Sequence[str] = ()
        self._losses: dict[str, list[Tensor]] = {name: [] for name in self._optimizers}

    @property
    def lr(self) -> dict[str, float]:
        """The current learning rate of each optimiser's first group."""
        return {name: float(optimizer.param_groups[0]["lr"]) for name, optimizer in self._optimizers.items()}

    def begin(self, at: Progress, cases: Sequence[str]) -> None:
        """Set the learning rates of a step; `cases` are named if its gradients are not finite."""
        self._at, self._cases = at, cases
        factor = self._phase.schedule(at.fraction)
        for name, optimizer in self._optimizers.items():
            for group, base in zip(optimizer.param_groups, self._base_lr[name], strict=True):
                group["lr"] = base * factor

    def minimise(self, loss: Tensor, name: str = "main", *, keep_graph: bool = False) -> None:
        """Take one step down `loss`: ``apply(gradients(loss, name), name)``."""
        self.apply(self.gradients(loss, name, keep_graph=keep_graph), name)

    def gradients(self, loss: Tensor, name: str = "main", *, keep_graph: bool = False) -> list[Tensor]:
        """Return d loss / d parameter, averaged over ranks, in the order of the optimiser's parameters."""
        parameters = self._known(name)
        with self._runtime.without_autocast():
            found = torch.autograd.grad(loss, parameters, retain_graph=keep_graph, allow_unused=True)
        gradients = [
            torch.zeros_like(parameter) if gradient is None else gradient
            for parameter, gradient in zip(parameters, found, strict=True)
        ]
        # The loss travels with its gradients, so that a bad one is known on every rank before any of them
        # steps.
        *averaged, mean_loss = self._runtime.average([*gradients, loss.detach().float()])
        self._losses[name].append(mean_loss)
        return averaged

    def apply(self, gradients: Sequence[Tensor], name: str = "main") -> None:
        """Clip, check that all are finite, and step the optimiser.

        Raises: MethodError naming phase, step, optimiser and cases, before any parameter moves on any rank.
        """
        parameters = self._known(name)
        losses, self._losses[name] = self._losses[name], []
        norm, *values = torch.stack([nn.utils.get_total_norm(list(gradients)).float(), *losses]).tolist()
        if not all(map(math.isfinite, (norm, *values))):
            raise MethodError(
                f"The loss or the gradients of '{name}' are not finite in phase '{self._phase.name}', step "
                f"{self._at.step}; cases: {', '.join(self._cases) or 'none named'}. Nothing was changed by "
                "this step. Look at these cases, or try a smaller --lr."
            )
        scale = min(1.0, self._clip_norm / (norm + 1e-6))
        clipped = [gradient.detach() for gradient in gradients]
        if scale < 1.0:
            clipped = list(torch._foreach_mul(clipped, scale))
        for parameter, gradient in zip(parameters, clipped, strict=True):
            parameter.grad = gradient
        self._optimizers[name].step()
        for parameter in parameters:
            parameter.grad = None
        # Autocast keeps bfloat16 copies of weights; another forward pass in this step must see the new ones.
        torch.clear_autocast_cache()

    def _known(self, name: str) -> list[Tensor]:
        if name not in self._parameters:
            known = ", ".join(f"'{key}'" for key in self._parameters)
            raise MethodError(f"Phase '{self._phase.name}' has no optimiser '{name}'; it has {known}.")
        return self._parameters[name]
