"""Exchange between labelled and unlabelled features by attention over channels (the U2L messenger).

Channel attention multiplies queries and keys over the positions, so its size does not depend on how many
positions there are, nor on whether they lie in a plane or in a volume.

Source: Zhang, Wang, Li, "S&D Messenger", arXiv:2407.07763, and the released code (read, not copied).

Shapes: B samples (L labelled, then U unlabelled), N positions, C channels, H heads, D channels of a head.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medplan.errors import MethodError

__all__ = ["ChannelAttention", "Memory", "Messenger", "Messengers", "shared_batch"]

Memory = Literal["batch", "paired"]
"""What labelled samples look at in training: the channels of all unlabelled samples, or of the one with their
number (counted round if there are fewer)."""


class Messenger(nn.Module):
    """Variant A: a module of its own behind a stage of the encoder.

    In training the first `num_labelled` samples query the channels of the unlabelled ones, and these query
    their own. Outside training (`num_labelled` None) every sample is its own memory and takes the labelled
    path, so that an answer does not depend on the rest of the batch.

    Args:
        width: C.
        heads: each as wide as the input.
        dropout: of attention and output, in training.
        memory: see `Memory`.
        shares_batch: released behaviour outside training: the whole batch is everybody's memory.

    Source: released code. The scores are instance-normalised instead of scaled by 1 / sqrt(D) (the paper's
    psi).
    Differs: `memory` "paired" and the separate samples outside training.
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int = 2,
        dropout: float = 0.1,
        memory: Memory = "batch",
        shares_batch: bool = False,
    ) -> None:
        super().__init__()
        self.heads, self.dropout = heads, nn.Dropout(dropout)
        self.memory, self.shares_batch = memory, shares_batch
        self.enter = nn.Linear(width, width)
        self.norm_before = nn.LayerNorm(width, eps=1e-6)
        self.labelled = _Projections(width, heads)
        self.unlabelled = _Projections(width, heads)
        self.norm_after = nn.LayerNorm(width, eps=1e-6)
        self.leave = nn.Linear(width, width)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, map_BCP: Tensor, num_labelled: int | None = None) -> Tensor:
        """Return a map of the same shape.

        Args:
            map_BCP: features, with one or several axes of positions; labelled samples first.
            num_labelled: L in training, with 0 < L < B; None outside.
        """
        entered = F.gelu(self.enter(map_BCP.flatten(2).transpose(1, 2)))
        tokens = self.norm_before(entered)
        if num_labelled is None:
            mixed = self._query(tokens, tokens, memory="batch" if self.shares_batch else "paired")
        else:
            _check_split(len(tokens), num_labelled)
            known, unknown = tokens[:num_labelled], tokens[num_labelled:]
            mixed = torch.cat([self._query(known, unknown, memory=self.memory), self._reflect(unknown)])
        left = F.gelu(self.leave(self.norm_after(mixed + entered)))
        return left.transpose(1, 2).reshape(map_BCP.shape)

    def _query(self, known_LNC: Tensor, unknown_UNC: Tensor, *, memory: Memory) -> Tensor:
        query, key, value = self.labelled(known_LNC, unknown_UNC)
        if memory == "batch":
            key, value = (part.flatten(0, 1).unsqueeze(0).expand(len(query), -1, -1) for part in (key, value))
        elif len(query) != len(key):
            partner = torch.arange(len(query), device=query.device) % len(key)
            key, value = key[partner], value[partner]
        mixed = self._attend(query, key, value).transpose(1, 2)
        output: Tensor = self.dropout(self.labelled.output(mixed))
        return output

    def _reflect(self, unknown_UNC: Tensor) -> Tensor:
        query, key, value = (
            part.unflatten(1, (self.heads, -1)) for part in self.unlabelled(unknown_UNC, unknown_UNC)
        )
        mixed_UHCN = self._attend(query, key, value)
        # The released output layer expects channel-major order (channel * H + head), unlike its projections.
        output: Tensor = self.dropout(self.unlabelled.output(mixed_UHCN.permute(0, 3, 2, 1).flatten(2)))
        return output

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        # Summed over all tokens, which float16 would not hold; powers of two round nothing.
        small = 0.5 ** (query.shape[-1].bit_length() // 2)
        scores = (query * small) @ (key * small).transpose(-1, -2)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) / small**2
        mean = scores.mean(dim=(-2, -1), keepdim=True)
        variance = scores.var(dim=(-2, -1), correction=0, keepdim=True)
        weights = ((scores - mean) * (variance + 1e-5).rsqrt()).softmax(-1)
        mixed: Tensor = self.dropout(weights) @ value
        return mixed


class Messengers(nn.ModuleDict):
    """Messengers by the number of the stage they follow (0 is the finest), as texts."""

    @classmethod
    def behind(
        cls,
        stages: Sequence[int],
        widths: Sequence[int],
        *,
        heads: int = 2,
        dropout: float = 0.1,
        memory: Memory = "batch",
    ) -> "Messengers":
        """Make messengers for an encoder.

        Args:
            stages: counted from 1 at the finest stage, or from -1 at the coarsest.
            widths: channels of all stages, finest first.
            heads, dropout, memory: as in `Messenger`.

        Raises: MethodError if there is no such stage.
        """
        count = len(widths)
        for stage in stages:
            if stage == 0 or abs(stage) > count:
                raise MethodError(
                    f"there is no stage {stage} for a messenger; the encoder has stages 1 to {count}, or -1 "
                    f"(coarsest) to -{count}."
                )
        chosen = sorted({stage - 1 if stage > 0 else count + stage for stage in stages})
        return cls(
            {
                str(stage): Messenger(widths[stage], heads=heads, dropout=dropout, memory=memory)
                for stage in chosen
            }
        )

    def forward(self, maps: Sequence[Tensor], num_labelled: int | None = None) -> tuple[Tensor, ...]:
        """Return all maps, those with a messenger exchanged."""
        return tuple(
            self[str(stage)](features, num_labelled) if str(stage) in self else features
            for stage, features in enumerate(maps)
        )


@contextmanager
def shared_batch(network: nn.Module, *, shares: bool) -> Iterator[None]:
    """Set `Messenger.shares_batch` of every messenger inside the block, and unset it afterwards."""
    messengers = [module for module in network.modules() if isinstance(module, Messenger)]
    for messenger in messengers:
        messenger.shares_batch = shares
    try:
        yield
    finally:
        for messenger in messengers:
            messenger.shares_batch = False


class _Projections(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, heads * width, bias=False)
        self.key = nn.Linear(width, heads * width, bias=False)
        self.value = nn.Linear(width, heads * width, bias=False)
        self.output = nn.Linear(heads * width, width, bias=False)

    def forward(self, asking_BNC: Tensor, asked_BNC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return query, key and value, each (B, H * C, N)."""
        return (
            self.query(asking_BNC).transpose(1, 2),
            self.key(asked_BNC).transpose(1, 2),
            self.value(asked_BNC).transpose(1, 2),
        )


class ChannelAttention(nn.Module):
    """Variant B: takes the place of the attention inside the blocks of the encoder's last stage.

    Labelled samples get ``alpha * (attention to the paired unlabelled sample) + (1 - alpha) * (to
    themselves)``, unlabelled ones attend to themselves; outside training both parts of a sample are the same.

    Args:
        width: C.
        heads: D = width / heads.
        alpha: in [0, 1]; 0.5 is the average that was released first.

    Source: arXiv:2407.07763, the formula of the labelled flow, and the first released commit.
    Differs: heads and channels are put back in order before the output layer (the released file reshapes
    without a transpose, which scrambles positions and channels).
    """

    def __init__(self, width: int, heads: int, *, alpha: float = 0.5) -> None:
        super().__init__()
        self.heads, self.alpha = heads, alpha
        self.query = nn.Linear(width, width)
        self.memory = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, width)

    def forward(self, tokens_BNC: Tensor, size: Sequence[int], num_labelled: int | None) -> Tensor:
        query = self.query(tokens_BNC).unflatten(2, (self.heads, -1)).permute(0, 2, 3, 1)
        key, value = self.memory(tokens_BNC).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 4, 1)
        mixed_BHDN = F.scaled_dot_product_attention(query, key, value, scale=query.shape[2] ** -0.5)
        if num_labelled is not None:
            _check_split(len(query), num_labelled)
            order = torch.arange(num_labelled, device=query.device)
            partner = num_labelled + order % (len(query) - num_labelled)
            known = query[:num_labelled]
            crossed = F.scaled_dot_product_attention(
                known, key[partner], value[partner], scale=query.shape[2] ** -0.5
            )
            own = mixed_BHDN[:num_labelled]
            mixed_BHDN = torch.cat([self.alpha * crossed + (1 - self.alpha) * own, mixed_BHDN[num_labelled:]])
        output: Tensor = self.output(mixed_BHDN.flatten(1, 2).transpose(1, 2))
        return output


def _check_split(num_samples: int, num_labelled: int) -> None:
    if not 0 < num_labelled < num_samples:
        raise MethodError(
            f"the messenger needs labelled and unlabelled samples; found {num_labelled} labelled ones among "
            f"{num_samples}. Give every training step at least one of each, or use the method 'supervised'."
        )
