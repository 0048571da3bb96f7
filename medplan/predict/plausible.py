"""Warnings about inputs that look unlike what a model was trained on. They stop nothing."""

import logging

import numpy as np

from medplan.data.images import Image
from medplan.plan.schema import DatasetPlan

__all__ = ["warn_if_unlike_training"]

logger = logging.getLogger(__name__)

SPACING_RATIO = 5.0
FEWEST_KNOWN = 0.01
MOST_SAMPLES = 200_000


def warn_if_unlike_training(image: Image, dataset: DatasetPlan, *, name: str) -> None:
    """Log a warning for a spacing far from that of the training cases, and for intensities outside of theirs.

    Intensities are judged where the plan has constants of the whole dataset (CT), by a sample of the voxels.
    """
    spacing, usual = image.geometry.spacing_mm, dataset.median_spacing_mm
    if spacing is not None and usual is not None:
        ratios = [max(a / b, b / a) for a, b in zip(sorted(spacing), sorted(usual), strict=True)]
        if max(ratios) > SPACING_RATIO:
            logger.warning(
                "case '%s': its spacing (z, y, x) %s mm is far from %s mm, which is usual in '%s'; is the "
                "header right?",
                name,
                tuple(round(value, 3) for value in spacing),
                tuple(round(value, 3) for value in usual),
                dataset.name,
            )
    for channel, scheme, values in zip(dataset.channels, dataset.normalisations, image.array, strict=True):
        if scheme.low is None or scheme.high is None:
            continue
        sample = values.reshape(-1)[:: max(1, values.size // MOST_SAMPLES)]
        known = float(np.mean((sample > scheme.low) & (sample < scheme.high)))
        if bool((sample == sample[0]).all()):
            logger.warning("case '%s': channel '%s' is %g everywhere.", name, channel, sample[0])
        elif known < FEWEST_KNOWN:
            logger.warning(
                "case '%s': only %.1f %% of channel '%s' lies between %g and %g, the intensities seen in "
                "training; is it in the same units?",
                name,
                100 * known,
                channel,
                scheme.low,
                scheme.high,
            )
