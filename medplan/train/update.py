"""Optimiser steps: the one place for averaging over ranks, clipping, the finite check and the step."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from medplan.errors import MethodError
from medplan.method import Phase, Progress
from medplan.runtime import Runtime

__all__ = ["GradientUpdate", "LossScale"]

logger = logging.getLogger(__name__)

GROWS_AFTER = 2000


@dataclass
class LossScale:
    """What losses are multiplied by, and gradients divided by, so that float16 can hold what is in between.

    Attributes:
        value: a power of two, so that scaling rounds nothing. It is halved when gradients overflow, and
            doubled when none has for a while.
        lasted: updates since it changed.

    Source: Micikevicius et al. 2018, arXiv:1710.03740; numbers as in `torch.amp.GradScaler`.
    """

    value: float = 2.0**16
    lasted: int = 0

    def note(self, *, overflowed: bool) -> None:
        """Take notice of how an update went."""
        self.lasted += 1
        if overflowed:
            self.value, self.lasted = self.value / 2, 0
        elif self.lasted == GROWS_AFTER:
            self.value, self.lasted = self.value * 2, 0


class GradientUpdate:
    """Implements `medplan.method.Update` for the optimisers of one phase.

    Gradients are taken with `torch.autograd.grad` for the parameters of one optimiser and averaged over ranks
    here, because a method may combine gradients of several losses before it steps; wrappers that hook into
    ``backward`` do not see those.

    In float16 losses are scaled. An update whose gradients overflow moves no parameter and no state of an
    optimiser, on any rank, and training goes on with half the scale. The step counts all the same: schedule,
    data and what a method averages itself go on.

    Args:
        optimizers: by name, with the learning rates that the schedule multiplies.
        phase: gives the schedule, and its name to error messages.
        scale: of losses in float16, changed in place; None begins with a new one.
        clip_norm: largest L2 norm of the gradients of one optimiser; 12 as in nnU-Net.

    Attributes:
        left_out: whether an update of this step overflowed.
    """

    def __init__(
        self,
        optimizers: Mapping[str, Optimizer],
        *,
        phase: Phase,
        runtime: Runtime,
        scale: LossScale | None = None,
        clip_norm: float = 12.0,
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
        self._scale = (scale or LossScale()) if runtime.precision == "fp16" else None
        self._at = Progress(phase=phase.name, step=0, num_steps=phase.num_steps)
        self._cases: Sequence[str] = ()
        self._seen: list[Tensor] = []
        self.left_out = False

    @property
    def lr(self) -> dict[str, float]:
        """The current learning rate of each optimiser's first group."""
        return {name: float(optimizer.param_groups[0]["lr"]) for name, optimizer in self._optimizers.items()}

    def begin(self, at: Progress, cases: Sequence[str]) -> None:
        """Set the learning rates of a step; `cases` are named if its gradients are not finite."""
        self._at, self._cases, self._seen, self.left_out = at, cases, [], False
        factor = self._phase.schedule(at.fraction)
        for name, optimizer in self._optimizers.items():
            for group, base in zip(optimizer.param_groups, self._base_lr[name], strict=True):
                group["lr"] = base * factor

    def minimise(self, loss: Tensor, name: str = "main", *, keep_graph: bool = False) -> None:
        """Take one step down `loss`: ``apply(gradients(loss, name), name)``."""
        self.apply(self.gradients(loss, name, keep_graph=keep_graph), name)

    def gradients(
        self, loss: Tensor, name: str = "main", *, keep_graph: bool = False, inputs: Sequence[Tensor] = ()
    ) -> list[Tensor]:
        """Return d loss / d parameter, averaged over ranks, in the order of the optimiser's parameters.

        Behind them come d loss / d input, which are those of this rank.
        """
        parameters = self._known(name)
        wanted = [*parameters, *inputs]
        with self._runtime.without_autocast():
            scaled = loss if self._scale is None else loss.float() * self._scale.value
            found = torch.autograd.grad(scaled, wanted, retain_graph=keep_graph, allow_unused=True)
        gradients = [
            torch.zeros_like(tensor) if gradient is None else gradient
            for tensor, gradient in zip(wanted, found, strict=True)
        ]
        seen = [loss.detach().float()]
        if self._scale is not None:
            gradients = list(torch._foreach_mul(gradients, 1 / self._scale.value))
            # In the order of their making: the first that is not finite says whose fault it is.
            seen.append(nn.utils.get_total_norm(gradients).float())
        # They travel with the gradients, so that a bad one is known on every rank before any of them steps.
        own = gradients[: len(parameters)]
        *averaged, mean = self._runtime.average([*own, torch.stack(seen)])
        self._seen.append(mean)
        return [*averaged, *gradients[len(parameters) :]]

    def apply(self, gradients: Sequence[Tensor], name: str = "main") -> None:
        """Clip, check that all are finite, and step the optimiser.

        Raises: MethodError naming phase, step, optimiser and cases, before any parameter moves on any rank.
        """
        parameters = self._known(name)
        seen, self._seen = self._seen, []
        length = nn.utils.get_total_norm(list(gradients)).float()
        *values, norm = torch.cat([*seen, length[None]]).tolist()
        is_finite = all(map(math.isfinite, (*values, norm)))
        if not is_finite and not self._overflowed(values):
            raise self._not_finite(name)
        if self._scale is not None:
            self._scale.note(overflowed=not is_finite)
        if not is_finite:
            self.left_out = True
            return
        scale = min(1.0, self._clip_norm / (norm + 1e-6))
        clipped = [gradient.detach() for gradient in gradients]
        if scale < 1.0:
            clipped = list(torch._foreach_mul(clipped, scale))
        for parameter, gradient in zip(parameters, clipped, strict=True):
            parameter.grad = gradient
        self._optimizers[name].step()
        for parameter in parameters:
            parameter.grad = None
        # Autocast keeps copies of weights in lower precision; another forward pass in this step must see the
        # new ones.
        torch.clear_autocast_cache()

    def _overflowed(self, values: Sequence[float]) -> bool:
        """Return whether a smaller scale helps, where not all of losses, lengths of gradients is finite."""
        if self._scale is None or self._scale.value < 1:
            return False
        first = next((index for index, value in enumerate(values) if not math.isfinite(value)), len(values))
        is_loss = first % 2 == 0 and first < len(values)
        if not is_loss:
            logger.info(
                "Step %d of phase '%s' is left out: gradients overflow in float16 at a scale of %g.",
                self._at.step,
                self._phase.name,
                self._scale.value,
            )
        return not is_loss

    def _not_finite(self, name: str) -> MethodError:
        lower = "" if self._scale is None else ", or go on with --precision fp32"
        return MethodError(
            f"The loss or the gradients of '{name}' are not finite in phase '{self._phase.name}', step "
            f"{self._at.step}; cases: {', '.join(self._cases) or 'none named'}. Nothing was changed by "
            f"this step. Look at these cases, or try a smaller --lr{lower}."
        )

    def _known(self, name: str) -> list[Tensor]:
        if name not in self._parameters:
            known = ", ".join(f"'{key}'" for key in self._parameters)
            raise MethodError(f"Phase '{self._phase.name}' has no optimiser '{name}'; it has {known}.")
        return self._parameters[name]
