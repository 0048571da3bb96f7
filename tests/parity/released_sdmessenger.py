"""The names that tensors have in the released network of S&D Messenger, translated into ours."""

import re
from collections.abc import Mapping

from torch import Tensor

from medplan.networks.mit import from_published

__all__ = ["messenger_from_published", "whole_from_published"]

_MESSENGER = {
    "map_in.0": "enter",
    "map_out.0": "leave",
    "attn_norm": "norm_before",
    "encoder_norm": "norm_after",
    "attn.query_u_u": "unlabelled.query",
    "attn.key_u_u": "unlabelled.key",
    "attn.value_u_u": "unlabelled.value",
    "attn.out_u": "unlabelled.output",
    "attn.query_l_u": "labelled.query",
    "attn.key_l_u": "labelled.key",
    "attn.value_l_u": "labelled.value",
    "attn.out_l": "labelled.output",
}
_HEAD = {
    "linear_c1.proj": "projections.0",
    "linear_c2.proj": "projections.1",
    "linear_c3.proj": "projections.2",
    "linear_c4.proj": "projections.3",
    "linear_fuse.conv": "fusion",
    "linear_fuse.bn": "norm",
    "linear_pred": "classifier",
}


def messenger_from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the released state dict of one messenger; 1x1 convolutions become linear layers.

    A name that is not known keeps its name, so that a strict load reports it.
    """
    renamed = {}
    for name, value in state.items():
        layer, _, kind = name.rpartition(".")
        flat = layer in ("map_in.0", "map_out.0") and kind == "weight"
        renamed[f"{_MESSENGER.get(layer, layer)}.{kind}"] = value.flatten(1) if flat else value
    return renamed


def whole_from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the state dict of a released network (``backbone.*``, ``framework.*``)."""
    renamed = {f"encoder.{name}": value for name, value in from_published(_part(state, "backbone.")).items()}
    for stage in range(4):
        part = messenger_from_published(_part(state, f"framework.u2l_module_{stage}."))
        renamed |= {f"messengers.{stage}.{name}": value for name, value in part.items()}
    for name, value in _part(state, "framework.decoder.").items():
        layer, _, kind = name.rpartition(".")
        renamed[f"decoder.{_HEAD.get(layer, layer)}.{kind}"] = value
    known = re.compile(r"(module\.)?(backbone\.|framework\.(u2l_module_[0-3]|decoder)\.)")
    return renamed | {name: value for name, value in state.items() if not known.match(name)}


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    stripped = {name.removeprefix("module."): value for name, value in state.items()}
    return {name.removeprefix(prefix): value for name, value in stripped.items() if name.startswith(prefix)}
