"""From updated task and modality tokens to classifiers of voxels and of the modality.

Source: Gao et al. 2024, arXiv:2306.02416, and its released code (not copied).
"""

# Shapes: B batch, T task slots, M modality tokens, D features of all levels together, C channels, Z Y X.

import torch
from torch import Tensor, nn

from medplan.networks.prior_attention import Perceptron

__all__ = ["ModalityHead", "PrototypeHead"]


class PrototypeHead(nn.Module):
    """Turns the task tokens of all levels into one classifier per task, and applies it to every voxel."""

    def __init__(self, features: int, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(features)
        self.perceptrons = nn.Sequential(Perceptron(features, outputs=channels), Perceptron(channels))
        for module in self.perceptrons.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, tokens_BTD: Tensor, features_BCZYX: Tensor) -> Tensor:
        """Return logits (B, T, Z, Y, X): inner products, without a bias."""
        prototypes_BTC = self.perceptrons(self.norm(tokens_BTD))
        scores = torch.bmm(prototypes_BTC, features_BCZYX.flatten(2))
        return scores.reshape(*scores.shape[:2], *features_BCZYX.shape[2:])


class ModalityHead(nn.Module):
    """Tells the modality from the modality tokens, so that they keep knowing it."""

    def __init__(self, features: int, num_modalities: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(features)
        self.perceptron = Perceptron(features, outputs=num_modalities)

    def forward(self, tokens_BMD: Tensor) -> Tensor:
        """Return logits (B, modalities)."""
        answer: Tensor = self.perceptron(self.norm(tokens_BMD).mean(1))
        return answer
