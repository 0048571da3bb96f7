"""MedFormer with learned task and modality tokens (Hermes-M).

A feature map and a few dozen tokens, which sum up the map, look at each other; so cost grows with the voxels
and not with their square. The task and modality tokens of Hermes join those tokens.

Paper: Gao et al. 2024, arXiv:2306.02416; MedFormer: Gao et al. 2022, arXiv:2203.00131. With the default
depths, 71 tasks and 5 modalities the network has 47.13 million weights.
"""

# Shapes: B batch, C channels, Z Y X voxels, L map tokens, T task slots, M modality tokens.

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medplan.networks.preactivation import (
    NormedConv,
    PreActivationBlock,
    SeparableConv,
    Stem,
    enlarge,
    instance_norm,
)
from medplan.networks.prior_attention import EPS, Perceptron, attend
from medplan.networks.prior_heads import PrototypeHead
from medplan.networks.prior_unet import PriorNetwork, PriorOutput, PriorShape

__all__ = ["MAP_TOKENS", "BidirectionalBlock", "MapFusion", "MedFormer", "PatchMerging", "SemanticMap"]

MAP_TOKENS = 64
EXPANSION = 4
FEATURE_EPS = 1e-5
"""Of the instance norms in front of attention and of merging; other norms of maps have 1e-4."""


class PatchMerging(nn.Module):
    """Halves a map: the 8 voxels of a cube become channels, which are mixed."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.reduction = SeparableConv(8 * inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        parts = [x[:, :, z::2, y::2, x_::2] for z in (0, 1) for y in (0, 1) for x_ in (0, 1)]
        answer: Tensor = self.reduction(instance_norm(torch.cat(parts, dim=1), FEATURE_EPS))
        return answer


class SemanticMap(nn.Module):
    """Sums a map up in tokens: weighted means, each with its own learned weights over the voxels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.features = nn.Conv3d(channels, channels, 3, padding=1, bias=False)
        self.weights = nn.Conv3d(channels, MAP_TOKENS, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, L, C)."""
        weights = self.weights(x).flatten(2).softmax(-1)
        return torch.bmm(weights, self.features(x).flatten(2).transpose(1, 2))


class InvertedBottleneck(nn.Module):
    """Widens, convolves per channel, weighs the channels, narrows, and adds to its input.

    Source: Tan and Le 2019, arXiv:1905.11946 (MBConv), with norms in front.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        wide = EXPANSION * channels
        self.expand = NormedConv(channels, wide, kernel=1)
        self.depthwise = NormedConv(wide, wide, groups=wide)
        self.squeeze = nn.Conv3d(wide, wide // 4, 1)
        self.excite = nn.Conv3d(wide // 4, wide, 1)
        self.project = NormedConv(wide, channels, kernel=1, activates=False)

    def forward(self, x: Tensor) -> Tensor:
        wide = self.depthwise(self.expand(x))
        gate = self.excite(F.relu(self.squeeze(wide.mean((2, 3, 4), keepdim=True)))).sigmoid()
        answer: Tensor = x + self.project(wide * gate)
        return answer


class BidirectionalBlock(nn.Module):
    """A map and tokens look at each other with one set of scores.

    Args:
        inputs, outputs: channels of the map.
        width: features of the tokens, and of all heads together.
        projects_tokens: False adds what tokens have seen without a further linear layer.
    """

    def __init__(
        self, inputs: int, outputs: int, *, width: int, head_size: int, projects_tokens: bool = True
    ) -> None:
        super().__init__()
        self.head_size = head_size
        self.token_norm = nn.LayerNorm(width)
        self.map_query_value = SeparableConv(inputs, 2 * width)
        self.map_out = SeparableConv(width, outputs)
        self.token_query_value = nn.Linear(width, 2 * width, bias=False)
        self.token_out = nn.Linear(width, width, bias=False) if projects_tokens else nn.Identity()
        self.shortcut = NormedConv(inputs, outputs, kernel=1) if inputs != outputs else nn.Identity()
        self.feedforward = InvertedBottleneck(outputs)

    def forward(self, x: Tensor, tokens: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return map (B, outputs, Z, Y, X) and tokens (B, n, width).

        Args:
            mask: bool (B, 1, 1, n), True for tokens that the map may look at.
        """
        of_map = self.map_query_value(instance_norm(x, FEATURE_EPS)).flatten(2).transpose(1, 2)
        of_tokens = self.token_query_value(self.token_norm(tokens))
        map_query, map_value = map(self._heads, of_map.chunk(2, dim=-1))
        token_query, token_value = map(self._heads, of_tokens.chunk(2, dim=-1))
        seen = self._joined(attend(map_query, token_query, token_value, mask))
        told = self._joined(attend(token_query, map_query, map_value))
        attended = self.map_out(seen.transpose(1, 2).reshape(len(x), -1, *x.shape[2:]))
        return self.feedforward(self.shortcut(x) + attended), tokens + self.token_out(told)

    def _heads(self, tokens: Tensor) -> Tensor:
        """Split features into heads; neighbouring features belong to different heads, as published."""
        return tokens.reshape(*tokens.shape[:2], self.head_size, -1).permute(0, 3, 1, 2)

    def _joined(self, heads: Tensor) -> Tensor:
        return heads.permute(0, 2, 3, 1).flatten(2)


class SelfAttention(nn.Module):
    """Multi-head attention among the map tokens of all levels."""

    def __init__(self, width: int, *, head_size: int) -> None:
        super().__init__()
        self.head_size = head_size
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width)
        self.perceptron_norm = nn.LayerNorm(width, eps=EPS)
        self.perceptron = Perceptron(width)

    def forward(self, tokens: Tensor) -> Tensor:
        parts = self.query_key_value(self.norm(tokens)).chunk(3, dim=-1)
        query, key, value = (
            part.reshape(*part.shape[:2], -1, self.head_size).transpose(1, 2) for part in parts
        )
        tokens = tokens + self.out(attend(query, key, value).transpose(1, 2).flatten(2))
        answer: Tensor = tokens + self.perceptron(self.perceptron_norm(tokens))
        return answer


class MapFusion(nn.Module):
    """Lets the map tokens of several levels look at each other."""

    def __init__(self, widths: tuple[int, ...], *, head_size: int) -> None:
        super().__init__()
        common = widths[-1]
        self.inward = nn.ModuleList(nn.Linear(width, common, bias=False) for width in widths)
        self.layers = nn.Sequential(*(SelfAttention(common, head_size=head_size) for _ in range(2)))
        self.outward = nn.ModuleList(nn.Linear(common, width, bias=False) for width in widths)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Return maps (B, L, width) of the same widths."""
        tokens = torch.cat([layer(one) for layer, one in zip(self.inward, maps, strict=True)], dim=1)
        fused = self.layers(tokens).split([one.shape[1] for one in maps], dim=1)
        return [layer(one) for layer, one in zip(self.outward, fused, strict=True)]


class FusedLevel(nn.Module):
    """The blocks of one level in which map, map tokens and prior tokens meet."""

    def __init__(
        self, shape: PriorShape, level: int, *, inputs: int, depth: int, is_last: bool = False
    ) -> None:
        super().__init__()
        width = shape.channels[level]
        self.pool = shape.pool(level)
        self.blocks = nn.ModuleList(
            BidirectionalBlock(
                inputs if number == 0 else width,
                width,
                width=width,
                head_size=shape.head_size,
                projects_tokens=not (is_last and number == depth - 1),
            )
            for number in range(depth)
        )

    def forward(
        self, x: Tensor, map_tokens: Tensor, task_ids: Tensor, modality_ids: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return map, map tokens (B, L, C) and prior tokens (B, T + M, C)."""
        tokens = torch.cat([map_tokens, self.pool(task_ids, modality_ids)], dim=1)
        for block in self.blocks:
            x, tokens = block(x, tokens, mask)
        return x, tokens[:, :MAP_TOKENS], tokens[:, MAP_TOKENS:]


class MedFormer(PriorNetwork):
    """Hermes-M: see the module. `PriorShape.depths` are 2, 4, 8, 4, 2 in the published configuration."""

    def __init__(self, shape: PriorShape) -> None:
        super().__init__(shape)
        widths, deepest = shape.channels, len(shape.channels) - 1
        down_depths, up_depths = shape.depths[: deepest - 1], shape.depths[deepest - 1 :]
        self.stem = Stem(shape.num_channels, widths[0])
        self.mergings = nn.ModuleList(
            PatchMerging(*widths[level - 1 : level + 1]) for level in range(1, deepest + 1)
        )
        self.shallow = nn.Sequential(*(PreActivationBlock(widths[1], widths[1]) for _ in range(2)))
        self.maps = nn.ModuleList(SemanticMap(width) for width in widths[2:])
        self.downs = nn.ModuleList(
            FusedLevel(shape, level, inputs=widths[level], depth=depth)
            for level, depth in enumerate(down_depths, start=2)
        )
        self.map_fusion = MapFusion(widths[2:], head_size=shape.head_size)
        self.map_reductions = nn.ModuleList()
        self.ups = nn.ModuleList()
        for level, depth in zip(reversed(range(2, deepest)), up_depths, strict=True):
            both = widths[level + 1] + widths[level]
            self.map_reductions.append(nn.Linear(both, widths[level], bias=False))
            self.ups.append(FusedLevel(shape, level, inputs=both, depth=depth, is_last=level == 2))
        self.fine_ups = nn.ModuleList(
            nn.Sequential(
                PreActivationBlock(widths[level + 1] + widths[level], widths[level]),
                PreActivationBlock(widths[level], widths[level]),
            )
            for level in (1, 0)
        )
        self.deep_head = PrototypeHead(shape.token_features, widths[2])

    def forward(self, image_BCZYX: Tensor, task_ids_BT: Tensor, modality_ids_B: Tensor) -> PriorOutput:
        """Segment; arguments as those of `PriorUNet`."""
        asked = (task_ids_BT, modality_ids_B, self._mask(task_ids_BT, MAP_TOKENS))
        tokens: list[Tensor] = []
        features = self._call(self.stem, image_BCZYX)
        skips = [features]
        features = self._call(self.shallow, self.mergings[0](features))
        skips.append(features)
        maps: list[Tensor] = []
        for merging, summary, down in zip(self.mergings[1:], self.maps, self.downs, strict=True):
            features = merging(features)
            features, found, priors = self._call(down, features, summary(features), *asked)
            skips.append(features)
            maps.append(found)
            tokens.append(priors)
        fused = self.map_fusion(maps)
        lower = fused[-1]
        for level, reduction, up in zip(
            reversed(range(2, len(skips) - 1)), self.map_reductions, self.ups, strict=True
        ):
            map_tokens = reduction(torch.cat([lower, fused[level - 2]], dim=-1))
            wide = torch.cat([enlarge(features, skips[level].shape[2:]), skips[level]], dim=1)
            features, lower, priors = self._call(up, wide, map_tokens, *asked)
            tokens.append(priors)
        coarse = features
        for level, up in zip((1, 0), self.fine_ups, strict=True):
            wide = torch.cat([enlarge(features, skips[level].shape[2:]), skips[level]], dim=1)
            features = self._call(up, wide)
        task_tokens, modality_tokens = self._split(tokens)
        return PriorOutput(
            logits=self.head(task_tokens, features),
            modality=self.modality_head(modality_tokens),
            deep=enlarge(self.deep_head(task_tokens, coarse), features.shape[2:]),
        )
