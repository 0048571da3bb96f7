"""A weak and a strong view of the same patches."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from medplan.randomness import generator as numpy_generator
from medplan.samples.augment import Augmentation
from medplan.samples.recolour import match_histogram, random_contrast

__all__ = ["WeakAndStrong"]

Batch = dict[str, Any]


@dataclass(frozen=True)
class WeakAndStrong:
    """Augments a batch, then degrades intensities further in what is learned from.

    ``image`` becomes stronger; ``unlabelled_image`` stays weak, so that labels can be made from it, and
    ``strong_unlabelled_image`` is added. All views of a patch are on the same voxels.

    Attributes:
        base: the weak augmentation.
        contrast: probability that a strong view shows another contrast, see `random_contrast`.
        match: probability that a strong view has another histogram, the ``histogram`` of the batch.
    """

    base: Augmentation
    contrast: float = 0.0
    match: float = 0.0

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
        changed = {}
        for key, learned in (("image", "image"), ("unlabelled_image", "strong_unlabelled_image")):
            if key not in batch:
                continue
            images = changed[learned] = batch[key].clone()
            for number, image in enumerate(images):
                seed = (
                    batch["seed"][number]
                    if "seed" in batch
                    else int(torch.randint(2**62, (1,), generator=generator))
                )
                rng = numpy_generator(seed, "strong", key)
                if "histogram" in batch and rng.random() < self.match:
                    share = float(rng.random()) ** 0.5
                    image.copy_(match_histogram(image, batch["histogram"][number], share=share))
                if rng.random() < self.contrast:
                    image.copy_(random_contrast(image, rng, keeps_slices=self.base.keeps_slices))
                strong.degrade(image, strong.draw(rng, num_channels=len(image)))
        return {**batch, **changed}
