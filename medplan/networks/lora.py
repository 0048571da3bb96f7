"""Low-rank adaptation of an attention layer's queries and values, around the layer rather than inside it.

Source: Hu et al. 2022, arXiv:2106.09685, section 4. Differs: no factor alpha / rank; the updates are
multiplied by a number that is computed from the mean token, as in I-MedSAM's released code (its paper does
not mention it).

Shapes: B windows or images, Y X tokens, C channels.
"""

import math
from typing import Any, cast

import torch
from torch import Tensor, nn

__all__ = ["LowRankAttention", "adapt_attention"]


class LowRankAttention(nn.Module):
    """A layer that makes queries, keys and values, plus learned low-rank updates of queries and values.

    Updates start at zero, so that nothing changes before training. Both are multiplied by one linear function
    of the mean token of each window, unbounded.

    Args:
        qkv: the layer, C channels to 3 C; it becomes a part of this module.
        rank: of each update.
    """

    def __init__(self, qkv: nn.Linear, rank: int) -> None:
        super().__init__()
        width = qkv.in_features
        self.qkv = qkv
        self.gate = nn.Linear(width, 1, bias=False)
        self.query_down, self.value_down = (nn.Linear(width, rank, bias=False) for _ in range(2))
        self.query_up, self.value_up = (nn.Linear(rank, width, bias=False) for _ in range(2))
        for down, up in ((self.query_down, self.query_up), (self.value_down, self.value_up)):
            nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5))
            nn.init.zeros_(up.weight)

    def forward(self, tokens_BYXC: Tensor) -> Tensor:
        """Return (B, Y, X, 3 C): queries, keys, values."""
        query, key, value = self.qkv(tokens_BYXC).chunk(3, dim=-1)
        more_query = self.query_up(self.query_down(tokens_BYXC))
        more_value = self.value_up(self.value_down(tokens_BYXC))
        gate = self.gate(tokens_BYXC.mean(dim=(1, 2), keepdim=True))
        return torch.cat([query + gate * more_query, key, value + gate * more_value], dim=-1)

    def added_parameters(self) -> list[nn.Parameter]:
        """Return what is to be trained: everything but the layer itself."""
        own = {id(parameter) for parameter in self.qkv.parameters()}
        return [parameter for parameter in self.parameters() if id(parameter) not in own]


def adapt_attention(encoder: nn.Module, rank: int) -> list[LowRankAttention]:
    """Put a `LowRankAttention` around ``attn.qkv`` of every block of a SAM image encoder; return them."""
    added = []
    for block in cast(Any, encoder).blocks:
        block.attn.qkv = LowRankAttention(block.attn.qkv, rank)
        added.append(block.attn.qkv)
    return added
