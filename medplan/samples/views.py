"""A weak and a strong view of the same unlabelled patches."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from medplan.randomness import generator as numpy_generator
from medplan.samples.augment import Augmentation

__all__ = ["WeakAndStrong"]

Batch = dict[str, Any]


@dataclass(frozen=True)
class WeakAndStrong:
    """Augments a batch, then adds ``strong_unlabelled_image``: the same patches with intensities degraded
    further.

    Both views are on the same voxels, so that a label made from one holds for the other.
    """

    base: Augmentation

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        batch = self.base(batch, generator)
        strong = replace(
            self.base,
            noise=(0.5, 0.0, 0.2),
            blurring=(0.3, 0.5, 1.5),
            brightness=(0.7, 0.6, 1.6),
            contrast=(0.7, 0.5, 1.7),
            coarseness=(0.3, 0.3, 1.0),
            inverted_gamma=(0.1, 0.5, 2.0),
            gamma=(0.5, 0.5, 2.0),
        )
        images = batch["unlabelled_image"].clone()
        for number, image in enumerate(images):
            seed = (
                batch["seed"][number]
                if "seed" in batch
                else int(torch.randint(2**62, (1,), generator=generator))
            )
            rng = numpy_generator(seed, "strong")
            strong.degrade(image, strong.draw(rng, num_channels=len(image)))
        return {**batch, "strong_unlabelled_image": images}
