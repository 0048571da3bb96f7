"""Mix Transformer, the hierarchical encoder of SegFormer, in its six sizes.

Source: Xie et al. 2021, "SegFormer", arXiv:2105.15203, section 3.1 and table 6.
Differs: nothing in the arithmetic; published ImageNet weights give the published features.

Shapes: B batch, C channels, N tokens (Y * X), Y X positions.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medplan.checkpoint import restore
from medplan.errors import MethodError, did_you_mean

__all__ = ["SIZES", "MitSize", "MixTransformer", "adapt_stem", "from_published", "load_encoder", "size_of"]

HEADS = (1, 2, 5, 8)
REDUCTIONS = (8, 4, 2, 1)
STRIDES = (4, 2, 2, 2)
KERNELS = (7, 3, 3, 3)
EXPANSION = 4
SMALLEST_SIDE = STRIDES[0] * REDUCTIONS[0]


@dataclass(frozen=True, kw_only=True)
class MitSize:
    """Channels and number of blocks of the four stages, finest (stride 4) first."""

    widths: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]


_WIDE = (64, 128, 320, 512)
SIZES: Mapping[str, MitSize] = {
    "mit_b0": MitSize(widths=(32, 64, 160, 256), depths=(2, 2, 2, 2)),
    "mit_b1": MitSize(widths=_WIDE, depths=(2, 2, 2, 2)),
    "mit_b2": MitSize(widths=_WIDE, depths=(3, 4, 6, 3)),
    "mit_b3": MitSize(widths=_WIDE, depths=(3, 4, 18, 3)),
    "mit_b4": MitSize(widths=_WIDE, depths=(3, 8, 27, 3)),
    "mit_b5": MitSize(widths=_WIDE, depths=(3, 6, 40, 3)),
}

AttentionMaker = Callable[[int, int], nn.Module]
"""(width, heads) -> a module that takes (tokens_BNC, (Y, X), num_labelled) and returns tokens_BNC."""


class MixTransformer(nn.Module):
    """Four maps at strides 4, 8, 16 and 32 of a picture of any size.

    Args:
        size: a key of `SIZES`, or the channels and depths themselves.
        in_channels: of the picture.
        drop_path: probability of leaving out the last block's residual branch in training; rises linearly
            from 0.
        last_attention: makes the attention of the last stage's blocks; None takes the ordinary one.
    """

    def __init__(
        self,
        size: str | MitSize,
        *,
        in_channels: int = 3,
        drop_path: float = 0.1,
        last_attention: AttentionMaker | None = None,
    ) -> None:
        super().__init__()
        if isinstance(size, str):
            if size not in SIZES:
                known = ", ".join(SIZES)
                raise MethodError(
                    f"There is no encoder '{size}'{did_you_mean(size, SIZES)}; choose from {known}."
                )
            size = SIZES[size]
        self.widths = size.widths
        last = sum(size.depths) - 1
        rates = iter(drop_path * number / last for number in range(last + 1))
        self.stages = nn.ModuleList()
        channels = in_channels
        for number, (width, depth) in enumerate(zip(size.widths, size.depths, strict=True)):
            maker = (
                last_attention if number == 3 and last_attention is not None else _spatial(REDUCTIONS[number])
            )
            blocks = [_Block(maker(width, HEADS[number]), width, drop_path=next(rates)) for _ in range(depth)]
            embedding = _PatchEmbedding(channels, width, kernel=KERNELS[number], stride=STRIDES[number])
            self.stages.append(_Stage(embedding, blocks, width))
            channels = width
        self.apply(_initialise)

    def forward(self, image_BCYX: Tensor, num_labelled: int | None = None) -> tuple[Tensor, ...]:
        """Return four maps, finest first.

        Args:
            image_BCYX: sides of 29 or more; a side n gives ceil(n / 4), ceil(n / 8), ... positions.
            num_labelled: handed to the attention of the blocks (see `medplan.networks.messenger`).
        """
        if min(image_BCYX.shape[2:]) <= SMALLEST_SIDE - 4:
            raise MethodError(
                f"a Mix Transformer needs sides of {SMALLEST_SIDE - 3} pixels or more, found "
                f"{tuple(image_BCYX.shape[2:])}; choose a larger --patch-size, or the encoder 'unet'."
            )
        maps = []
        features = image_BCYX
        for stage in self.stages:
            features = stage(features, num_labelled)
            maps.append(features)
        return tuple(maps)


class _Stage(nn.Module):
    def __init__(self, embedding: "_PatchEmbedding", blocks: list["_Block"], width: int) -> None:
        super().__init__()
        self.embedding = embedding
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, map_BCYX: Tensor, num_labelled: int | None) -> Tensor:
        embedded = self.embedding.projection(map_BCYX)
        size = embedded.shape[2:]
        tokens = self.embedding.norm(embedded.flatten(2).transpose(1, 2))
        for block in self.blocks:
            tokens = block(tokens, size, num_labelled)
        normed: Tensor = self.norm(tokens)
        return normed.transpose(1, 2).reshape(embedded.shape)


class _PatchEmbedding(nn.Module):
    def __init__(self, channels: int, width: int, *, kernel: int, stride: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(channels, width, kernel, stride, kernel // 2)
        self.norm = nn.LayerNorm(width, eps=1e-5)


class _Block(nn.Module):
    def __init__(self, attention: nn.Module, width: int, *, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attention = attention
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.feed_forward = _MixFeedForward(width)
        self.drop_path = drop_path

    def forward(self, tokens_BNC: Tensor, size: tuple[int, int], num_labelled: int | None) -> Tensor:
        tokens_BNC = tokens_BNC + self._keep(self.attention(self.norm1(tokens_BNC), size, num_labelled))
        return tokens_BNC + self._keep(self.feed_forward(self.norm2(tokens_BNC), size))

    def _keep(self, branch_BNC: Tensor) -> Tensor:
        if not self.training or self.drop_path == 0:
            return branch_BNC
        keep = 1 - self.drop_path
        return branch_BNC * (branch_BNC.new_empty(len(branch_BNC), 1, 1).bernoulli_(keep) / keep)


class _SpatialAttention(nn.Module):
    """Self-attention whose keys and values are on a grid coarser by `reduction`."""

    def __init__(self, width: int, heads: int, *, reduction: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.memory = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, width)
        self.reduction = nn.Conv2d(width, width, reduction, reduction) if reduction > 1 else None
        self.reduction_norm = nn.LayerNorm(width, eps=1e-5) if reduction > 1 else None

    def forward(self, tokens_BNC: Tensor, size: tuple[int, int], num_labelled: int | None) -> Tensor:
        source = tokens_BNC
        if self.reduction is not None and self.reduction_norm is not None:
            coarse = self.reduction(_on_grid(source, size))
            source = self.reduction_norm(coarse.flatten(2).transpose(1, 2))
        query = self.query(tokens_BNC).unflatten(2, (self.heads, -1)).transpose(1, 2)
        key, value = self.memory(source).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        output: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return output


class _MixFeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = EXPANSION * width
        self.expand = nn.Linear(width, hidden)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, 1, 1, groups=hidden)
        self.reduce = nn.Linear(hidden, width)

    def forward(self, tokens_BNC: Tensor, size: tuple[int, int]) -> Tensor:
        hidden = self.depthwise(_on_grid(self.expand(tokens_BNC), size))
        output: Tensor = self.reduce(F.gelu(hidden.flatten(2).transpose(1, 2)))
        return output


def _on_grid(tokens_BNC: Tensor, size: tuple[int, int]) -> Tensor:
    return tokens_BNC.transpose(1, 2).reshape(len(tokens_BNC), tokens_BNC.shape[2], *size)


def _spatial(reduction: int) -> AttentionMaker:
    return lambda width, heads: _SpatialAttention(width, heads, reduction=reduction)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
        nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)


_PUBLISHED = (
    (r"patch_embed(\d)\.proj\.", r"stages.#.embedding.projection."),
    (r"patch_embed(\d)\.norm\.", r"stages.#.embedding.norm."),
    (r"block(\d)\.(\d+)\.attn\.q\.", r"stages.#.blocks.\2.attention.query."),
    (r"block(\d)\.(\d+)\.attn\.kv\.", r"stages.#.blocks.\2.attention.memory."),
    (r"block(\d)\.(\d+)\.attn\.proj\.", r"stages.#.blocks.\2.attention.output."),
    (r"block(\d)\.(\d+)\.attn\.sr\.", r"stages.#.blocks.\2.attention.reduction."),
    (r"block(\d)\.(\d+)\.attn\.norm\.", r"stages.#.blocks.\2.attention.reduction_norm."),
    (r"block(\d)\.(\d+)\.(norm[12])\.", r"stages.#.blocks.\2.\3."),
    (r"block(\d)\.(\d+)\.mlp\.fc1\.", r"stages.#.blocks.\2.feed_forward.expand."),
    (r"block(\d)\.(\d+)\.mlp\.dwconv\.dwconv\.", r"stages.#.blocks.\2.feed_forward.depthwise."),
    (r"block(\d)\.(\d+)\.mlp\.fc2\.", r"stages.#.blocks.\2.feed_forward.reduce."),
    (r"norm(\d)\.", r"stages.#.norm."),
)
_TRANSFORMERS = (
    (r"patch_embeddings\.(\d)\.proj\.", r"patch_embed#.proj."),
    (r"patch_embeddings\.(\d)\.layer_norm\.", r"patch_embed#.norm."),
    (r"block\.(\d)\.(\d+)\.attention\.self\.query\.", r"block#.\2.attn.q."),
    (r"block\.(\d)\.(\d+)\.attention\.self\.key\.", r"block#.\2.attn.k."),
    (r"block\.(\d)\.(\d+)\.attention\.self\.value\.", r"block#.\2.attn.v."),
    (r"block\.(\d)\.(\d+)\.attention\.self\.sr\.", r"block#.\2.attn.sr."),
    (r"block\.(\d)\.(\d+)\.attention\.self\.layer_norm\.", r"block#.\2.attn.norm."),
    (r"block\.(\d)\.(\d+)\.attention\.output\.dense\.", r"block#.\2.attn.proj."),
    (r"block\.(\d)\.(\d+)\.layer_norm_([12])\.", r"block#.\2.norm\3."),
    (r"block\.(\d)\.(\d+)\.mlp\.dense([12])\.", r"block#.\2.mlp.fc\3."),
    (r"block\.(\d)\.(\d+)\.mlp\.dwconv\.dwconv\.", r"block#.\2.mlp.dwconv.dwconv."),
    (r"layer_norm\.(\d)\.", r"norm#."),
)
_LEFT_OUT = ("head.", "decode_head.", "auxiliary_head.", "framework.", "classifier.", "decoder.")
_WRAPPERS = ("module.", "segformer.", "encoder.", "backbone.")


def from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a published state dict of a Mix Transformer to the names used here.

    Reads the names of the SegFormer release (``mit_b0.pth``; also with the prefix ``backbone.`` of a whole
    segmenter) and those of the `transformers` library. Heads and classifiers are left out; a name that is
    none of these keeps its name, so that a strict load reports it.
    """
    released: dict[str, Tensor] = {}
    for name, value in state.items():
        short = name
        while (wrapper := next((w for w in _WRAPPERS if short.startswith(w)), None)) is not None:
            short = short.removeprefix(wrapper)
        if not short.startswith(_LEFT_OUT):
            released[_rename(short, _TRANSFORMERS, shift=1)] = value
    for key in [name for name in released if ".attn.k." in name]:
        partner = key.replace(".attn.k.", ".attn.v.")
        if partner in released and released[key].shape == released[partner].shape:
            pair = torch.cat([released.pop(key), released.pop(partner)])
            released[key.replace(".attn.k.", ".attn.kv.")] = pair
    return {_rename(name, _PUBLISHED, shift=-1): value for name, value in released.items()}


def adapt_stem(kernel_OIYX: Tensor, in_channels: int) -> Tensor:
    """Return a first convolution for pictures of `in_channels` from one that was learned on RGB.

    Three channels keep it. Otherwise each channel gets the mean kernel times 3 / in_channels, so that equal
    channels give the response to the grey picture.
    """
    if kernel_OIYX.shape[1] == in_channels:
        return kernel_OIYX
    grey = kernel_OIYX.sum(1, keepdim=True) / in_channels
    return grey.expand(-1, in_channels, -1, -1).clone()


def size_of(weights: str) -> str:
    """Return the size that the name of a weight file tells, ``mit_b2`` where it tells none."""
    found = re.search(r"mit[-_]?(b[0-5])", weights.lower())
    return f"mit_{found[1]}" if found else "mit_b2"


def load_encoder(encoder: MixTransformer, state: Mapping[str, Tensor], *, where: str) -> None:
    """Load published weights into `encoder`, all of them or none.

    Raises: CheckpointError naming `where` and the tensors that are missing, superfluous or of another shape.
    """
    renamed = from_published(state)
    stem = "stages.0.embedding.projection.weight"
    if stem in renamed and renamed[stem].ndim == 4:
        renamed[stem] = adapt_stem(renamed[stem], encoder.state_dict()[stem].shape[1])
    advice = "Choose the encoder (mit_b0 to mit_b5) that the file was made for."
    restore(encoder, renamed, where=where, advice=advice)


def _rename(name: str, table: tuple[tuple[str, str], ...], *, shift: int) -> str:
    """Apply the first row whose pattern matches; ``#`` is the stage, counted on by `shift`."""
    for pattern, replacement in table:
        found = re.match(pattern, name)
        if found is not None:
            stage = str(int(found[1]) + shift)
            return found.expand(replacement).replace("#", stage) + name[found.end() :]
    return name
