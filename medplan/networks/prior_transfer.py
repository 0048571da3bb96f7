"""Going on from another network with prior tokens: what is taken over, and what learns."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from medplan.networks.prior_unet import PriorNetwork

__all__ = ["Transfer", "learning", "translate"]

Transfer = Literal["full", "priors", "incremental"]


def learning(network: PriorNetwork, transfer: Transfer) -> list[nn.Parameter]:
    """Return what learns: everything; tokens of added tasks and of modalities, and heads; or the first."""
    if transfer == "full":
        return list(network.parameters())
    pools = network.pools()
    added = [pool.added for pool in pools if pool.added is not None]
    if transfer == "incremental":
        return added
    return [*added, *(pool.modalities for pool in pools), *network.heads()]


def translate(
    weights: Mapping[str, Tensor],
    network: PriorNetwork,
    *,
    tasks: tuple[Sequence[str], Sequence[str]],
    modalities: tuple[Sequence[str], Sequence[str]],
) -> dict[str, Tensor]:
    """Return a state of `network` whose rows of tasks and modalities are taken over by name.

    Args:
        weights: of the other network.
        network: whose own rows stay where the other has no such name. A modality without a row in the other
            network begins as its unknown one.
        tasks, modalities: names by number, first the other network's, then this one's, as what they begin.

    Returns: a state with the keys of `weights`; the caller loads it strictly.
    """
    own = network.state_dict()
    state = dict(weights)
    for key in [key for key in weights if key.endswith("pool.tasks")]:
        stem = key.removesuffix("tasks")
        if key not in own or own[key].shape[1:] != weights[key].shape[1:]:
            continue  # another network, which the strict load refuses
        rows = _rows(weights[key], weights.get(f"{stem}added"))
        state.pop(f"{stem}added", None)
        mine = _rows(own[key], own.get(f"{stem}added"))
        chosen = _by_name(rows[:-1], mine[:-1], *tasks)
        num_known = len(own[key]) - 1
        state[key] = torch.cat([chosen[:num_known], rows[-1:]])
        if f"{stem}added" in own:
            state[f"{stem}added"] = chosen[num_known:]
        kept = weights[f"{stem}modalities"]
        unknown = kept[-1:].expand(len(modalities[1]), *kept.shape[1:])
        state[f"{stem}modalities"] = torch.cat([_by_name(kept[:-1], unknown, *modalities), kept[-1:]])
    for part in ("weight", "bias"):
        key = f"modality_head.perceptron.second.{part}"
        if key in weights and own[key].shape[1:] == weights[key].shape[1:]:
            chosen = _by_name(weights[key][:-1], own[key][:-1], *modalities)
            state[key] = torch.cat([chosen, weights[key][-1:]])
    return state


def _rows(tasks: Tensor, added: Tensor | None) -> Tensor:
    return tasks if added is None else torch.cat([tasks[:-1], added, tasks[-1:]])


def _by_name(theirs: Tensor, mine: Tensor, names: Sequence[str], my_names: Sequence[str]) -> Tensor:
    """Return `mine` with those rows replaced that the other has under the same name."""
    places = {name: row for row, name in enumerate(names)}
    rows = [theirs[places[name]] if name in places else mine[row] for row, name in enumerate(my_names)]
    return torch.stack(rows) if rows else theirs[:0]
