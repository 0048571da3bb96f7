"""The names that tensors have in the checkpoints of I-MedSAM's authors (ucwxb/I-MedSAM)."""

import re
from collections.abc import Mapping

from torch import Tensor

from medplan.errors import CheckpointError

__all__ = ["is_released", "released_state"]


def is_released(weights: Mapping[str, object]) -> bool:
    """Return whether this holds the adapters in the naming of the authors' checkpoints."""
    return "w_a_000" in weights


def released_state(weights: Mapping[str, Tensor], *, where: str = "the file") -> dict[str, Tensor]:
    """Translate the authors' tensor names into those of `ImplicitSam`.

    Names of SAM's image encoder, which may lie in the same file, are left out.
    Raises: CheckpointError for a name that is not known.
    """
    renamed: dict[str, Tensor] = {}
    for name, value in weights.items():
        if name.startswith("image_encoder.") and ".freq_" not in name:
            continue
        renamed[_rename(name, where)] = value
    return renamed


def _rename(name: str, where: str) -> str:
    if found := re.fullmatch(r"w_(a|b|g)_(\d{3})", name):
        number = int(found[2])
        if found[1] == "g":
            return f"encoder.vit.blocks.{number}.attn.qkv.gate.weight"
        target, way = ("query", "value")[number % 2], {"a": "down", "b": "up"}[found[1]]
        return f"encoder.vit.blocks.{number // 2}.attn.qkv.{target}_{way}.weight"
    if found := re.fullmatch(r"image_encoder\.blocks\.(\d+)\.freq_(adapter|norm)\.(.+)", name):
        part = found[3].replace("D_fc1", "down").replace("D_fc2", "up")
        return f"encoder.frequency.{found[1]}.{'norm.' if found[2] == 'norm' else ''}{part}"
    if found := re.fullmatch(r"mask_decoder\.seg_field\.seg_net\.([0-3])\.(.+)", name):
        return f"decoder.{('coarse', 'fine', 'coarse_heads', 'fine_heads')[int(found[1])]}." + (
            re.sub(r"^(\d+)\.0\.", r"\1.", found[2]) if found[1] == "2" else found[2]
        )
    if name.startswith(("prompt_encoder.", "mask_decoder.")):
        return name
    raise CheckpointError(f"{where}: '{name}' is not a tensor of I-MedSAM's released checkpoints.")
