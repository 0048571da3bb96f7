"""The spectrum of an image, and the small networks that carry it past the blocks of a Vision Transformer.

Source: Wei et al. 2024, "I-MedSAM", arXiv:2311.17081 (ECCV 2024), section 3.2; released code (no licence;
read, not copied).
Differs: the spectrum is that of the image, as in the released code, where the paper transforms features.

Shapes: B images, C channels, Y X pixels or tokens, D width of the tokens.
"""

import torch
from torch import Tensor, nn

__all__ = ["FrequencyAdapter", "spectrum"]


def spectrum(image_BCYX: Tensor, *, compat: bool = False) -> Tensor:
    """Return the amplitude spectrum of each image, mapped to [0, 1], zero frequency in the middle.

    Args:
        image_BCYX: finite values of any range; the grey value is the mean of the channels.
        compat: as the released code has it: first channel only, amplitudes rather than their logarithms
            (nearly everything but the zero frequency is then black), NaN for a black image.

    Returns: spectrum_B1YX, at least float32; 0 everywhere for a black image.
    """
    # Half precision would overflow: the zero frequency is the sum of all pixels.
    values = image_BCYX if image_BCYX.dtype == torch.float64 else image_BCYX.float()
    grey = 255 * (values[:, 0] if compat else values.mean(1))
    amplitude = torch.fft.fftshift(torch.fft.fft2(grey), dim=(-2, -1)).abs()
    if not compat:
        amplitude = torch.log1p(amplitude)
    low, high = amplitude.amin((1, 2), keepdim=True), amplitude.amax((1, 2), keepdim=True)
    span = high - low if compat else (high - low).clamp_min(torch.finfo(torch.float32).tiny)
    relative: Tensor = (amplitude - low) / span
    return relative.unsqueeze(1)


class FrequencyAdapter(nn.Module):
    """One step of the frequency tokens beside one block: z + W2 GELU(W1 z), z being normalised tokens.

    Args:
        width: D.
        hidden: width in between.
    """

    def __init__(self, width: int, hidden: int = 4) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.down = nn.Linear(width, hidden)
        self.up = nn.Linear(hidden, width)

    def forward(self, tokens_BYXD: Tensor) -> Tensor:
        normed: Tensor = self.norm(tokens_BYXD)
        update: Tensor = self.up(nn.functional.gelu(self.down(normed)))
        return normed + update

    def added_parameters(self) -> list[nn.Parameter]:
        """Return what is to be trained; the normalisation stays at 1 and 0, as in the released weights."""
        return [*self.down.parameters(), *self.up.parameters()]
