"""Activation checkpointing: less memory for more time. Activations inside a part of a network are not kept,
but computed again in the backward pass."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils.checkpoint import checkpoint

__all__ = ["run"]


def run(module: nn.Module, *inputs: Any, recompute: bool) -> Any:
    """Return ``module(*inputs)``; with `recompute` only the inputs are kept for the backward pass.

    Running statistics of batch norms move once, as without it. Not for parts that draw random numbers.
    """
    if not recompute or not torch.is_grad_enabled():
        return module(*inputs)
    # On the CPU the runtime sets the precision of some operations by a function mode, which is not active in
    # the backward pass: it has to be entered again there.
    modes = [] if torch.compiler.is_compiling() else _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    if not modes and not any(isinstance(part, _BatchNorm) for part in module.modules()):
        return checkpoint(module, *inputs, use_reentrant=False, preserve_rng_state=False)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _as_before(module, modes)

    return checkpoint(module, *inputs, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)


@contextmanager
def _as_before(module: nn.Module, modes: Sequence[TorchFunctionMode]) -> Iterator[None]:
    """Enter the function modes of the forward pass, and let no batch norm update its running statistics a
    second time; in eval mode it still uses them."""
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    with ExitStack() as stack:
        for mode in modes:
            stack.enter_context(mode)
        try:
            yield
        finally:
            for norm, (momentum, counter) in zip(norms, before, strict=True):
                norm.momentum, norm.num_batches_tracked = momentum, counter
