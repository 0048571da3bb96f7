"""The folds that make one model: which support cases they use, whether they agree, what they say together."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medplan.errors import CheckpointError, MethodError, UsageError, did_you_mean
from medplan.plan.schema import Plan
from medplan.runtime import Runtime
from medplan.samples.cases import Case

__all__ = ["check_alike", "choose", "hash_state", "mean_of"]


def choose(cases: tuple[Case, ...], wanted: Sequence[str], run: Path) -> tuple[Case, ...]:
    """Return the support cases that are wanted by id or key, or all.

    Raises: UsageError if there is no such case.
    """
    known = {name: case for case in cases for name in (case.id, case.key)}
    for name in wanted:
        if name not in known:
            listed = ", ".join(case.id for case in cases) or "none"
            raise UsageError(
                f"{run}: there is no support case '{name}'{did_you_mean(name, known)}; it has {listed}."
            )
    return tuple(known[name] for name in wanted) if wanted else cases


def check_alike(plans: Sequence[Plan], run: Path) -> None:
    """Raise CheckpointError unless the folds' logits can be averaged."""
    for plan in plans[1:]:
        for name in ("method", "grid", "patch_size"):
            if getattr(plan, name) != getattr(plans[0], name):
                raise CheckpointError(
                    f"{run}: its folds were trained with different plans ({name} {getattr(plans[0], name)} "
                    f"and {getattr(plan, name)}), so they cannot be averaged. Choose one with --folds."
                )
        if [dataset.labels for dataset in plan.datasets] != [dataset.labels for dataset in plans[0].datasets]:
            raise CheckpointError(f"{run}: its folds have different labels. Choose one with --folds.")


def hash_state(digest: Any, weights: dict[str, Any], support: Iterable[Case]) -> None:
    """Add weights and support cases to a digest."""
    for name, value in sorted(weights.items()):
        digest.update(name.encode())
        if isinstance(value, Tensor):
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        else:
            digest.update(repr(value).encode())
    for case in support:
        digest.update(case.key.encode())
        digest.update(np.ascontiguousarray(case.image()).data)
        digest.update(np.ascontiguousarray(case.label()).data)


def mean_of(answers: Sequence[Iterator[Tensor]], runtime: Runtime) -> Iterator[Tensor]:
    """Yield the mean of the folds' logits, slab by slab."""
    while True:
        with torch.no_grad(), runtime.autocast():
            slabs = [slab for slab in (next(answer, None) for answer in answers) if slab is not None]
        if not slabs:
            return
        mean = slabs[0] if len(slabs) == 1 else torch.stack(slabs).mean(0)
        if runtime.precision == "fp16" and not bool(mean.isfinite().all()):
            raise MethodError("The answers do not fit into float16; predict with --precision fp32.")
        yield mean
