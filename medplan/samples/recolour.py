"""Another look of the same anatomy: a random one, or that of another image.

Source of the random one: Ouyang et al. 2022, "Causality-inspired single-source domain generalization for
medical image segmentation", arXiv:2111.12525 (its global intensity augmentation).
Differs: mean and deviation of the patch are kept instead of its Frobenius norm.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["match_histogram", "random_contrast"]

NUM_LAYERS, WIDTH = 4, 2
SLOPE = 0.01
_ENOUGH_VOXELS = 2**16


def random_contrast(image: Tensor, rng: np.random.Generator, *, keeps_slices: bool = False) -> Tensor:
    """Pass one image through a small convolutional network of random weights, and mix it with itself.

    Bright and dark may change places; edges stay where they are. Mean and deviation stay those of the image.

    Args:
        image: (C, Z, Y, X) float32; all channels are mixed. Not changed.
        rng: decides everything.
        keeps_slices: kernels do not reach over the slice axis.
    """
    widths = [len(image), *[WIDTH] * (NUM_LAYERS - 1), len(image)]
    changed = image[None]
    for number in range(NUM_LAYERS):
        side = int(rng.choice((1, 3)))
        kernel = (1 if keeps_slices or image.shape[1] == 1 else side, side, side)
        weights = rng.standard_normal((widths[number + 1], widths[number], *kernel)).astype(np.float32)
        shifts = rng.standard_normal(widths[number + 1]).astype(np.float32)
        changed = F.conv3d(
            changed,
            torch.from_numpy(weights).to(image, non_blocking=True),
            torch.from_numpy(shifts).to(image, non_blocking=True),
            padding=tuple(size // 2 for size in kernel),
        )
        if number + 1 < NUM_LAYERS:
            changed = F.leaky_relu(changed, SLOPE)
    share = float(rng.random())
    mixed = share * _standardised(changed[0]) + (1 - share) * _standardised(image)
    deviation, mean = torch.std_mean(image, correction=0)
    return _standardised(mixed) * deviation + mean


def match_histogram(image: Tensor, target_CQ: Tensor, *, share: float) -> Tensor:
    """Give an image the histogram of another one, keeping the order of its intensities.

    Intensities between quantiles are replaced linearly. Where many voxels have one intensity, air for
    instance, it becomes the mean of those that take its place.

    Args:
        image: (C, Z, Y, X) float32. Not changed.
        target_CQ: `medplan.samples.histogram.quantiles` of the other image.
        share: of the new intensities against the old ones, in [0, 1].
    """
    changed = torch.empty_like(image)
    for channel, target, result in zip(image, target_CQ, changed, strict=True):
        voxels = channel.flatten()
        voxels = voxels[:: -(-len(voxels) // _ENOUGH_VOXELS)].sort().values
        levels = torch.linspace(0, len(voxels) - 1, len(target), device=image.device).long()
        old = voxels[levels]
        first, behind = torch.searchsorted(old, old), torch.searchsorted(old, old, right=True)
        total = F.pad(target.cumsum(0), (1, 0))
        new = (total[behind] - total[first]) / (behind - first)
        upper = torch.searchsorted(old, channel.contiguous(), right=True).clamp(1, len(old) - 1)
        low, high = old[upper - 1], old[upper]
        part = ((channel - low) / (high - low).clamp_min(1e-6)).clamp(0, 1)
        torch.lerp(channel, torch.lerp(new[upper - 1], new[upper], part), share, out=result)
    return changed


def _standardised(image: Tensor) -> Tensor:
    deviation, mean = torch.std_mean(image, correction=0)
    return (image - mean) / deviation.clamp_min(1e-6)
