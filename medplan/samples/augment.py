"""Augmentation of batches where they live: nnU-Net's default set, in torch, on the device.

All parameters of an element are drawn first, from a generator of its own; applying them is deterministic. So
the same element is augmented alike whatever batch, rank or process it is in.

Shapes: B batch, C channels, Z Y X voxels; two-dimensional patches have Z = 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from medplan.errors import MethodError
from medplan.randomness import generator as numpy_generator
from medplan.samples.spatial import resample_patch, sampling_grid

__all__ = ["Augmentation", "Intensity", "adjust_contrast", "adjust_gamma", "blur", "coarsen", "shape_patches"]

Voxel = tuple[int, int, int]
Batch = dict[str, Any]
Chance = tuple[float, float, float]
"""(probability, lowest, highest) of one transform."""


@dataclass(frozen=True, kw_only=True)
class Intensity:
    """Drawn parameters of one image; per channel a number, or None where the transform is not applied.

    Attributes:
        noise_std: standard deviation of Gaussian noise, the same noise strength in all channels.
        blur_vox: standard deviation of a Gaussian kernel.
        brightness, contrast: factors; contrast acts about the channel's mean and keeps its range.
        coarseness: resolution relative to the patch's.
        inverted_gamma, gamma: exponents; mean and deviation of the channel are kept.
        seed: of the noise.
    """

    noise_std: float | None
    blur_vox: tuple[float | None, ...]
    brightness: tuple[float, ...] | None
    contrast: tuple[float, ...] | None
    coarseness: tuple[float | None, ...]
    inverted_gamma: tuple[float, ...] | None
    gamma: tuple[float, ...] | None
    seed: int


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Resamples, degrades and mirrors the patches of a batch; the defaults are nnU-Net's.

    Args:
        patch_size: voxels (z, y, x) of the patches that leave.
        mirror_axes: axes (0 z, 1 y, 2 x) that may be flipped, each every second time. Leave out the
            left-right axis (2 on canonical grids) where classes differ by side.
        noise .. gamma: (probability, lowest, highest).
        keeps_slices: blur and coarsening leave the slice axis alone.

    Every key of the batch that ends in ``image`` is treated, together with the label and the transform whose
    keys end in ``label`` and ``transform`` instead. Elements without ``seed`` draw from the generator.

    Source: Isensee et al. 2021, doi:10.1038/s41592-020-01008-z, supplementary note 4.
    """

    patch_size: Voxel
    mirror_axes: tuple[int, ...] = (0, 1, 2)
    noise: Chance = (0.1, 0.0, 0.1)
    blurring: Chance = (0.2, 0.5, 1.0)
    brightness: Chance = (0.15, 0.75, 1.25)
    contrast: Chance = (0.15, 0.75, 1.25)
    coarseness: Chance = (0.25, 0.5, 1.0)
    inverted_gamma: Chance = (0.1, 0.7, 1.5)
    gamma: Chance = (0.3, 0.7, 1.5)
    keeps_slices: bool = False

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Return the augmented batch; images may be changed in place."""
        batch = shape_patches(batch, self.patch_size)
        images = [key for key in batch if key.endswith("image")]
        for number in range(len(batch[images[0]])):
            seed = (
                batch["seed"][number]
                if "seed" in batch
                else int(torch.randint(2**62, (1,), generator=generator))
            )
            for key in images:
                rng = numpy_generator(seed, key)
                image = batch[key][number]
                self.degrade(image, self.draw(rng, num_channels=len(image)))
                self._mirror(batch, key, number, rng)
        return batch

    def draw(self, rng: np.random.Generator, *, num_channels: int) -> Intensity:
        """Draw the intensity parameters of one image."""

        def once(chance: Chance) -> float | None:
            return float(rng.uniform(*chance[1:])) if rng.random() < chance[0] else None

        def all_channels(chance: Chance) -> tuple[float, ...] | None:
            if rng.random() >= chance[0]:
                return None
            return tuple(_either_side_of_one(rng, *chance[1:]) for _ in range(num_channels))

        def some_channels(chance: Chance) -> tuple[float | None, ...]:
            if rng.random() >= chance[0]:
                return (None,) * num_channels
            return tuple(
                float(rng.uniform(*chance[1:])) if rng.random() < 0.5 else None for _ in range(num_channels)
            )

        return Intensity(
            noise_std=once(self.noise),
            blur_vox=some_channels(self.blurring),
            brightness=all_channels(self.brightness),
            contrast=all_channels(self.contrast),
            coarseness=some_channels(self.coarseness),
            inverted_gamma=all_channels(self.inverted_gamma),
            gamma=all_channels(self.gamma),
            seed=int(rng.integers(2**62)),
        )

    def degrade(self, image: Tensor, intensity: Intensity) -> None:
        """Apply intensity transforms to one image (C, Z, Y, X) in place, in nnU-Net's order."""
        if intensity.noise_std is not None:
            source = torch.Generator(image.device).manual_seed(intensity.seed)
            noise = torch.randn(image.shape, generator=source, device=image.device, dtype=image.dtype)
            image.add_(noise, alpha=intensity.noise_std)
        axes = tuple(
            axis for axis in (0, 1, 2) if image.shape[axis + 1] > 1 and not (axis == 0 and self.keeps_slices)
        )
        for number, channel in enumerate(image):
            sigma, coarseness = intensity.blur_vox[number], intensity.coarseness[number]
            if sigma is not None:
                channel.copy_(blur(channel, sigma, axes=axes))
            if intensity.brightness is not None:
                channel.mul_(intensity.brightness[number])
            if intensity.contrast is not None:
                adjust_contrast(channel, intensity.contrast[number])
            if coarseness is not None:
                channel.copy_(coarsen(channel, coarseness, axes=axes))
            if intensity.inverted_gamma is not None:
                adjust_gamma(channel.neg_(), intensity.inverted_gamma[number]).neg_()
            if intensity.gamma is not None:
                adjust_gamma(channel, intensity.gamma[number])

    def _mirror(self, batch: Batch, key: str, number: int, rng: np.random.Generator) -> None:
        axes = [axis for axis in self.mirror_axes if rng.random() < 0.5]
        if not axes:
            return
        from_end = [axis - 3 for axis in axes]
        batch[key][number] = batch[key][number].flip(from_end)
        label = key.removesuffix("image") + "label"
        if label in batch:
            batch[label][number] = batch[label][number].flip(from_end)


def shape_patches(batch: Batch, patch_size: Voxel) -> Batch:
    """Apply the transforms that the sampler drew, and stack images and labels of unequal boxes.

    Raises: MethodError if an element without a transform does not have the patch size.
    """
    shaped = {key: value for key, value in batch.items() if not key.endswith("transform")}
    for key in [key for key in batch if key.endswith("image")]:
        stem = key.removesuffix("image")
        transforms = batch.get(stem + "transform") or [None] * len(batch[key])
        pairs = [(key, True)] + ([(stem + "label", False)] if stem + "label" in batch else [])
        # Image and label of an element are sampled at the same places.
        grids = [
            None
            if transform is None or transform.scales_only
            else sampling_grid(transform, patch_size, item.device)
            for item, transform in zip(batch[key], transforms, strict=True)
        ]
        for name, is_image in pairs:
            if all(transform is None for transform in transforms) and isinstance(batch[name], Tensor):
                _check_patch(name, batch[name].shape[-3:], patch_size)
                continue
            items = []
            for item, transform, grid in zip(batch[name], transforms, grids, strict=True):
                if transform is None:
                    _check_patch(name, item.shape[-3:], patch_size)
                    items.append(item)
                elif is_image:
                    items.append(resample_patch(item, transform, patch_size, mode="linear", grid=grid))
                else:
                    codes = resample_patch(item[None], transform, patch_size, mode="nearest", grid=grid)
                    items.append(codes[0])
            shaped[name] = torch.stack(items)
    return shaped


def blur(image: Tensor, sigma_vox: float, *, axes: Sequence[int]) -> Tensor:
    """Convolve (Z, Y, X) with a Gaussian along `axes`, cut at three deviations; border voxels are
    repeated."""
    radius = max(1, round(3 * sigma_vox))
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma_vox) ** 2)
    weights /= weights.sum()
    for axis in axes:
        length = image.shape[axis]
        ends = [image.narrow(axis, 0, 1), image.narrow(axis, length - 1, 1)]
        padded = torch.cat([ends[0]] * radius + [image] + [ends[1]] * radius, dim=axis)
        # Shifted sums: a convolution with seven taps would be unrolled into a matrix of its own by torch.
        image = padded.narrow(axis, 0, length) * weights[0]
        for tap, weight in enumerate(weights[1:], start=1):
            image.add_(padded.narrow(axis, tap, length), alpha=float(weight))
    return image


def coarsen(image: Tensor, resolution: float, *, axes: Sequence[int]) -> Tensor:
    """Sample (Z, Y, X) at a fraction of its resolution along `axes` (nearest) and interpolate back
    (linear)."""
    small = image
    for axis in axes:
        length = image.shape[axis]
        fewer = max(1, round(length * resolution))
        index = ((torch.arange(fewer, device=image.device) + 0.5) * (length / fewer)).long()
        small = small.index_select(axis, index)
    return F.interpolate(small[None, None], size=list(image.shape), mode="trilinear", align_corners=False)[
        0, 0
    ]


def adjust_contrast(image: Tensor, factor: float) -> Tensor:
    """Scale the distance from the mean in place, and clip to the former range."""
    mean, (low, high) = image.mean(), image.aminmax()
    return image.sub_(mean).mul_(factor).add_(mean).clamp_(low, high)


def adjust_gamma(image: Tensor, exponent: float) -> Tensor:
    """Raise the intensities, mapped to [0, 1], to a power in place; mean and deviation stay."""
    mean, (low, high) = image.mean(), image.aminmax()
    spread = _spread(image.sub_(mean))
    image.sub_(low - mean).div_((high - low).clamp_min(1e-7)).clamp_(0, 1).pow_(exponent)
    image.sub_(image.mean())
    return image.mul_(spread / _spread(image).clamp_min(1e-7)).add_(mean)


def _spread(centred: Tensor) -> Tensor:
    """Return the root mean square: what `std` gives, several times faster, for an image whose mean is 0."""
    spread: Tensor = torch.linalg.vector_norm(centred) / centred.numel() ** 0.5
    return spread


def _either_side_of_one(rng: np.random.Generator, low: float, high: float) -> float:
    """Draw a factor, below and above one equally often."""
    if rng.random() < 0.5 and low < 1:
        return float(rng.uniform(low, 1.0))
    return float(rng.uniform(max(low, 1.0), high))


def _check_patch(name: str, found: Sequence[int], patch_size: Voxel) -> None:
    if tuple(found) != tuple(patch_size):
        raise MethodError(
            f"'{name}' of the batch has patches {tuple(found)}; the augmentation expects {patch_size}."
        )
