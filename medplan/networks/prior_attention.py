"""Learned task and modality tokens, and the attention between them and an image.

No attention here is from image to image: matrices have as many columns as there are tokens.
"""

# Shapes: B batch, C channels, Z Y X voxels, N image tokens, T task slots, M modality tokens, P = T + M.

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["CrossAttention", "Perceptron", "PriorFusion", "PriorPool", "attend", "attention_mask"]

EPS = 1e-4
"""Of the layer norms in front of perceptrons; the others have PyTorch's 1e-5."""


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return softmax(query key^T / sqrt(head)) value for tensors (B, heads, tokens, channels of a head).

    Args:
        mask: bool (B, 1, 1, key tokens), True where a key may be looked at; None for everywhere.
    """
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def attention_mask(is_real_BT: Tensor, num_before: int, num_after: int) -> Tensor:
    """Return (B, 1, 1, num_before + T + num_after): which of the tokens may be looked at."""
    batch = len(is_real_BT)
    before, after = (is_real_BT.new_ones(batch, number) for number in (num_before, num_after))
    return torch.cat([before, is_real_BT, after], dim=1)[:, None, None]


class CrossAttention(nn.Module):
    """Multi-head attention of one set of tokens to another, both normalised first."""

    def __init__(self, width: int, *, head_size: int) -> None:
        super().__init__()
        self.head_size = head_size
        self.norm = nn.LayerNorm(width)
        self.memory_norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width)

    def forward(self, tokens: Tensor, memory: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return what is to be added to `tokens` (B, n, C), which look at `memory` (B, m, C)."""
        query = self._heads(self.query(self.norm(tokens)))
        key, value = self.key_value(self.memory_norm(memory)).chunk(2, dim=-1)
        found = attend(query, self._heads(key), self._heads(value), mask)
        answer: Tensor = self.out(found.transpose(1, 2).flatten(2))
        return answer

    def _heads(self, tokens: Tensor) -> Tensor:
        return tokens.reshape(*tokens.shape[:2], -1, self.head_size).transpose(1, 2)


class Perceptron(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, width: int, hidden: int | None = None, outputs: int | None = None) -> None:
        super().__init__()
        self.first = nn.Linear(width, hidden or width)
        self.second = nn.Linear(hidden or width, outputs or width)

    def forward(self, tokens: Tensor) -> Tensor:
        answer: Tensor = self.second(F.gelu(self.first(tokens)))
        return answer


class PriorPool(nn.Module):
    """The learned tokens of one level of the network.

    The rows of tasks are those that were known from the start, those added later, and the null row, which
    stands in slots without a task (id -1). The last modality is the unknown one (id -1).

    Args:
        num_tasks, num_added: rows of tasks known from the start, and added.
        num_modalities, num_tokens: known modalities, and tokens of each.
        width: channels of the level.

    Source: Gao et al. 2024, arXiv:2306.02416. Differs: no row is unused (the released code has one).
    """

    def __init__(
        self, *, num_tasks: int, num_added: int, num_modalities: int, num_tokens: int, width: int
    ) -> None:
        super().__init__()
        self.tasks = nn.Parameter(torch.empty(num_tasks + 1, width))
        self.added = nn.Parameter(torch.empty(num_added, width)) if num_added else None
        self.modalities = nn.Parameter(torch.empty(num_modalities + 1, num_tokens, width))
        for parameter in self.parameters():
            nn.init.xavier_uniform_(parameter)

    def all_tasks(self) -> Tensor:
        """Return (tasks, C) by id, the null row last."""
        if self.added is None:
            return self.tasks
        return torch.cat([self.tasks[:-1], self.added, self.tasks[-1:]])

    def forward(self, task_ids_BT: Tensor, modality_ids_B: Tensor) -> Tensor:
        """Return the tokens (B, T + M, C): those of the tasks, then those of the modality."""
        return torch.cat([self.all_tasks()[task_ids_BT], self.modalities[modality_ids_B]], dim=1)


class PriorBlock(nn.Module):
    """Tokens look at the image, then the image looks at the tokens; each step adds to what was there."""

    def __init__(self, width: int, *, head_size: int) -> None:
        super().__init__()
        self.to_tokens = CrossAttention(width, head_size=head_size)
        self.tokens_norm = nn.LayerNorm(width, eps=EPS)
        self.tokens_perceptron = Perceptron(width, 4 * width)
        self.to_image = CrossAttention(width, head_size=head_size)
        self.image_norm = nn.LayerNorm(width, eps=EPS)
        self.image_perceptron = Perceptron(width, 4 * width)

    def forward(
        self, image_BNC: Tensor, tokens_BPC: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        tokens = tokens_BPC + self.to_tokens(tokens_BPC, image_BNC)
        tokens = tokens + self.tokens_perceptron(self.tokens_norm(tokens))
        image = image_BNC + self.to_image(image_BNC, tokens, mask)
        image = image + self.image_perceptron(self.image_norm(image))
        return image, tokens


class PriorFusion(nn.Module):
    """The tokens of a level and the blocks in which they meet its feature map."""

    def __init__(self, pool: PriorPool, *, width: int, depth: int, head_size: int) -> None:
        super().__init__()
        self.pool = pool
        self.blocks = nn.ModuleList(PriorBlock(width, head_size=head_size) for _ in range(depth))

    def forward(
        self, features_BCZYX: Tensor, task_ids_BT: Tensor, modality_ids_B: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the updated map and the updated tokens (B, T + M, C)."""
        tokens = self.pool(task_ids_BT, modality_ids_B)
        image = features_BCZYX.flatten(2).transpose(1, 2)
        for block in self.blocks:
            image, tokens = block(image, tokens, mask)
        return image.transpose(1, 2).reshape(features_BCZYX.shape), tokens
