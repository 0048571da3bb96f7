"""Residual U-Nets whose deep levels meet learned task and modality tokens (Hermes-R).

Paper: Gao et al. 2024, arXiv:2306.02416. With the default `PriorShape`, 71 tasks and 5 modalities the network
has 60.88 million weights.
"""

# Shapes: B batch, C channels, Z Y X voxels, T task slots, M modality tokens.

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medplan.networks.preactivation import PreActivationBlock, Stem, enlarge
from medplan.networks.prior_attention import PriorFusion, PriorPool, attention_mask
from medplan.networks.prior_heads import ModalityHead, PrototypeHead
from medplan.networks.recompute import run

__all__ = ["PriorNetwork", "PriorOutput", "PriorShape", "PriorUNet"]


@dataclass(frozen=True, kw_only=True)
class PriorShape:
    """Sizes of a network with prior tokens.

    Attributes:
        num_channels: of the image.
        channels: per level, finest first; levels 2 and deeper meet the tokens.
        depths: blocks in which they meet: levels 2, 3, ... down, then up again without the deepest.
        head_size: channels per attention head.
        num_tasks, num_added: known from the start, and added later (`PriorPool`).
        num_modalities, num_tokens: known modalities, and tokens of each.
        masks_null: empty task slots are not looked at. Released: they are, so that logits depend on padding.
        recomputes: forget activations of the levels in the forward pass and compute them again in the
            backward pass: less memory, a third more time.
    """

    num_channels: int = 1
    channels: tuple[int, ...] = (32, 64, 128, 256, 320)
    depths: tuple[int, ...] = (2, 2, 4, 2, 2)
    head_size: int = 32
    num_tasks: int = 71
    num_added: int = 0
    num_modalities: int = 5
    num_tokens: int = 10
    masks_null: bool = True
    recomputes: bool = False

    def __post_init__(self) -> None:
        fused = self.channels[2:]
        if not fused or len(self.depths) != 2 * len(fused) - 1:
            raise ValueError(
                f"'channels' {self.channels} need at least three levels and "
                f"{max(1, 2 * len(fused) - 1)} 'depths', found {self.depths}"
            )
        if any(width % self.head_size for width in fused):
            raise ValueError(f"'channels' {fused} should be multiples of 'head_size' {self.head_size}")

    @property
    def fused_levels(self) -> tuple[int, ...]:
        """Levels that meet tokens, in order of computation: 2, 3, 4, 3, 2."""
        down = range(2, len(self.channels))
        return (*down, *reversed(down[:-1]))

    @property
    def token_features(self) -> int:
        return sum(self.channels[level] for level in self.fused_levels)

    def pool(self, level: int) -> PriorPool:
        """Return new tokens for a level."""
        return PriorPool(
            num_tasks=self.num_tasks,
            num_added=self.num_added,
            num_modalities=self.num_modalities,
            num_tokens=self.num_tokens,
            width=self.channels[level],
        )


@dataclass(frozen=True, kw_only=True)
class PriorOutput:
    """What a network with prior tokens answers.

    Attributes:
        logits: (B, T, Z, Y, X), one sigmoid per task slot.
        modality: logits (B, modalities + 1); the last one is the unknown modality, which is never the truth.
        deep: logits of a coarser level at full size, where the network has such.
    """

    logits: Tensor
    modality: Tensor
    deep: Tensor | None = None


class PriorNetwork(nn.Module):
    """What Hermes' networks have in common: tokens of several levels become classifiers."""

    def __init__(self, shape: PriorShape) -> None:
        super().__init__()
        self.shape = shape
        self.head = PrototypeHead(shape.token_features, shape.channels[0])
        self.modality_head = ModalityHead(shape.token_features, shape.num_modalities + 1)

    def pools(self) -> tuple[PriorPool, ...]:
        """Return the tokens of each fused level, in order of computation."""
        return tuple(module for module in self.modules() if isinstance(module, PriorPool))

    def heads(self) -> list[nn.Parameter]:
        """Return the weights that turn tokens into classifiers."""
        ours = (PrototypeHead, ModalityHead)
        return [p for module in self.modules() if isinstance(module, ours) for p in module.parameters()]

    def similarity(self) -> Tensor:
        """Return (tasks, tasks): cosine of the tokens of two tasks, averaged over levels."""
        tables = [F.normalize(pool.all_tasks()[:-1].float(), dim=1) for pool in self.pools()]
        return torch.stack([table @ table.T for table in tables]).mean(0)

    def _mask(self, task_ids_BT: Tensor, num_before: int = 0) -> Tensor | None:
        if not self.shape.masks_null:
            return None
        return attention_mask(task_ids_BT >= 0, num_before, self.shape.num_tokens)

    def _call(self, module: nn.Module, *arguments: Any) -> Any:
        return run(module, *arguments, recompute=self.shape.recomputes)

    def _split(self, tokens: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return task tokens (B, T, D) and modality tokens (B, M, D) of all levels together."""
        together = torch.cat(tokens, dim=-1)
        return together[:, : -self.shape.num_tokens], together[:, -self.shape.num_tokens :]


class PriorUNet(PriorNetwork):
    """Hermes-R: see the module."""

    def __init__(self, shape: PriorShape) -> None:
        super().__init__(shape)
        widths, levels = shape.channels, range(1, len(shape.channels))
        self.stem = Stem(shape.num_channels, widths[0])
        self.downs = nn.ModuleList(
            nn.Sequential(
                PreActivationBlock(widths[level - 1], widths[level]),
                PreActivationBlock(widths[level], widths[level]),
            )
            for level in levels
        )
        self.ups = nn.ModuleList(
            nn.Sequential(
                PreActivationBlock(widths[level] + widths[level - 1], widths[level - 1]),
                PreActivationBlock(widths[level - 1], widths[level - 1]),
            )
            for level in reversed(levels)
        )
        self.fusions = nn.ModuleList(
            PriorFusion(shape.pool(level), width=widths[level], depth=depth, head_size=shape.head_size)
            for level, depth in zip(shape.fused_levels, shape.depths, strict=True)
        )

    def forward(self, image_BCZYX: Tensor, task_ids_BT: Tensor, modality_ids_B: Tensor) -> PriorOutput:
        """Segment.

        Args:
            image_BCZYX: sides are multiples of 2 to the power of the levels less one.
            task_ids_BT: rows of the task tables; -1 for an empty slot.
            modality_ids_B: -1 if unknown.
        """
        mask, fusions = self._mask(task_ids_BT), iter(self.fusions)
        tokens: list[Tensor] = []

        def fuse(features: Tensor) -> Tensor:
            fused, found = self._call(next(fusions), features, task_ids_BT, modality_ids_B, mask)
            tokens.append(found)
            return fused  # type: ignore[no-any-return]

        features = self._call(self.stem, image_BCZYX)
        skips = [features]
        for level, down in enumerate(self.downs, start=1):
            features = self._call(down, F.max_pool3d(features, 2))
            features = fuse(features) if level >= 2 else features
            skips.append(features)
        for level, up in zip(reversed(range(len(self.downs))), self.ups, strict=True):
            skip = skips[level]
            features = self._call(up, torch.cat([skip, enlarge(features, skip.shape[2:])], dim=1))
            features = fuse(features) if level >= 2 else features
        task_tokens, modality_tokens = self._split(tokens)
        return PriorOutput(
            logits=self.head(task_tokens, features), modality=self.modality_head(modality_tokens)
        )
