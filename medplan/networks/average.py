"""Exponential moving average of a network's weights, kept in buffers."""

import copy
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

__all__ = ["MovingAverage"]

_Network = TypeVar("_Network", bound=nn.Module)


class MovingAverage(nn.Module):
    """An exponential moving average of the weights of a network; it starts equal to them.

    It is kept in buffers, so that it is saved and moved with the method, and no optimiser trains it.

    Args:
        network: whose parameters and buffers are averaged; not kept.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._names = {name: name.replace(".", "/") for name, _ in _tensors(network)}
        for name, value in _tensors(network):
            self.register_buffer(self._names[name], value.detach().clone())

    @torch.no_grad()
    def update(self, network: nn.Module, *, decay: float, leaves_buffers: bool = False) -> None:
        """Move the average towards the network by ``1 - decay``; integer buffers are copied.

        Args:
            leaves_buffers: move parameters only; running statistics stay those of the averaged network.
        """
        theirs = list(network.named_parameters()) if leaves_buffers else _tensors(network)
        pairs = [(self.get_buffer(self._names[name]), value.detach()) for name, value in theirs]
        moved = [pair for pair in pairs if pair[0].is_floating_point()]
        if moved:
            torch._foreach_lerp_([mine for mine, _ in moved], [value for _, value in moved], 1 - decay)
        for mine, value in pairs:
            if not mine.is_floating_point():
                mine.copy_(value)

    def weights(self) -> dict[str, Tensor]:
        """Return the averaged weights under the network's names."""
        return {name: self.get_buffer(mine) for name, mine in self._names.items()}

    @staticmethod
    def saved(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
        """Return the averaged weights, under the network's names, in the state of a module that keeps them as
        `name`."""
        found = {key: value for key, value in state.items() if key.startswith(f"{name}.")}
        return {key.removeprefix(f"{name}.").replace("/", "."): value for key, value in found.items()}

    def applied(self, network: _Network) -> _Network:
        """Return a copy of the network that has the averaged weights."""
        averaged = copy.deepcopy(network)
        averaged.load_state_dict(self.weights())
        return averaged

    def call(self, network: nn.Module, *arguments: Any) -> Any:
        """Run the network with the averaged weights."""
        return functional_call(network, self.weights(), arguments)


def _tensors(network: nn.Module) -> list[tuple[str, Tensor]]:
    kept = set(network.state_dict())
    return [*network.named_parameters(), *((n, b) for n, b in network.named_buffers() if n in kept)]
