"""Images made from label maps: a random grey per class, uneven light, coarse resolution, noise.

A network that learns from them meets contrasts that no scanner gave its training images, and labels that fit
to the voxel.

Shapes: B batch, Z Y X voxels.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from medplan.samples.augment import adjust_gamma, blur, coarsen

__all__ = ["Synthesis", "synthesise"]

Range = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Synthesis:
    """How images are drawn from labels; a range is uniform.

    Attributes:
        grey: mean intensity of a class, and of the background where it is not black.
        spread: standard deviation inside a class.
        dark_background: chance that what has no class is 0, as outside a masked organ.
        bias: standard deviation of the logarithm of a smooth factor, drawn from 0 to this.
        bias_cells: side of the coarse grid that the smooth factor is interpolated from.
        softness_vox: standard deviation of the blur that mixes classes at their borders.
        coarseness: resolution relative to the grid's, each axis by itself with an even chance.
        noise: standard deviation of noise on the finished image, drawn from 0 to this.
        gamma: standard deviation of the logarithm of an exponent.

    Source: Billot et al. 2023, arXiv:2107.09559, section 3.2. Differs: no deformation, which the caller
        applies to the label; ranges are for intensities in [0, 1].
    """

    grey: Range = (0.05, 1.0)
    spread: Range = (0.0, 0.1)
    dark_background: float = 0.7
    bias: float = 0.3
    bias_cells: int = 4
    softness_vox: Range = (0.3, 0.8)
    coarseness: Range = (0.5, 1.0)
    noise: float = 0.05
    gamma: float = 0.3


def synthesise(
    codes_BZYX: Tensor,
    *,
    num_greys: int,
    generator: torch.Generator,
    settings: Synthesis | None = None,
) -> Tensor:
    """Draw an image from each label map.

    Every element has a generator of its own, seeded from `generator`: it does not depend on what it is in a
    batch with.

    Args:
        codes_BZYX: integers below `num_greys`; what is below 0 (no annotation) is drawn as background.
        generator: on the CPU.

    Returns: (B, 1, Z, Y, X) float32 in [0, 1], on the device of the codes.
    """
    settings = settings or Synthesis()
    codes = codes_BZYX.long().clamp_min(0)
    seeds = torch.randint(2**62, (len(codes),), generator=generator).tolist()
    return torch.stack(
        [_one(own, num_greys, seed, settings) for own, seed in zip(codes, seeds, strict=True)]
    )[:, None]


def _one(codes_ZYX: Tensor, num_greys: int, seed: int, settings: Synthesis) -> Tensor:
    source, device = torch.Generator().manual_seed(seed), codes_ZYX.device
    grain = torch.Generator(device).manual_seed(seed)

    def uniform(limits: Range, count: int = 1) -> Tensor:
        low, high = limits
        return low + (high - low) * torch.rand(count, generator=source)

    def sent(values: Tensor) -> Tensor:
        return values.to(device, non_blocking=True)

    def noise() -> Tensor:
        return torch.randn(codes_ZYX.shape, generator=grain, device=device)

    grey, spread = uniform(settings.grey, num_greys), uniform(settings.spread, num_greys)
    if float(uniform((0, 1))) < settings.dark_background:
        grey[0] = spread[0] = 0
    image = sent(grey)[codes_ZYX] + sent(spread)[codes_ZYX] * noise()
    axes = tuple(axis for axis, side in enumerate(image.shape) if side > 1)
    softness = float(uniform(settings.softness_vox))
    if softness > 0:
        image = blur(image, softness, axes=axes)
    cells = sent(torch.randn((1, 1, *(settings.bias_cells,) * 3), generator=source))
    field = F.interpolate(cells, size=list(image.shape), mode="trilinear", align_corners=True)[0, 0]
    image = image * (field * sent(uniform((0, settings.bias)))).exp()
    for axis, resolution in zip(axes, uniform(settings.coarseness, len(axes)).tolist(), strict=True):
        if float(uniform((0, 1))) < 0.5:
            image = coarsen(image, resolution, axes=(axis,))
    image = image + sent(uniform((0, settings.noise))) * noise()
    exponent = float(torch.exp(settings.gamma * torch.randn((), generator=source)))
    adjust_gamma(image, exponent)
    low, high = image.aminmax()
    return (image - low) / (high - low).clamp_min(1e-7)
