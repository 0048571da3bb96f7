"""Less memory for more time: what a part computes inside is forgotten, and computed again when needed."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

__all__ = ["run"]


def run(module: nn.Module, *inputs: Tensor, recompute: bool) -> Tensor:
    """Return ``module(*inputs)``; with `recompute` only the inputs are kept for the backward pass.

    Running statistics of batch norms move once, as without it. Not for parts that draw random numbers.
    """
    if not recompute or not torch.is_grad_enabled():
        result: Tensor = module(*inputs)
        return result

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _still_statistics(module)

    result = checkpoint(module, *inputs, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)
    return result


@contextmanager
def _still_statistics(module: nn.Module) -> Iterator[None]:
    """Keep running statistics and counters as they are; a batch norm in eval mode goes on using them."""
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, counter) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, counter
