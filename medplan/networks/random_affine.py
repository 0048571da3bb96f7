"""Rotation and scaling of whole images on the device, the same for all images of an element."""

from dataclasses import dataclass
from math import pi
from typing import Any

import torch
from torch import Tensor

from medplan.networks.warp import affine_flow, warp

__all__ = ["RandomAffine", "rotations"]


@dataclass(frozen=True, kw_only=True)
class RandomAffine:
    """Turns ``image``, ``label`` and ``unlabelled_image`` of each element about their centre, zeros outside.

    Attributes:
        degrees: each of three Euler angles is uniform in +- this.
        scale: range of the isotropic factor of the images' size.
        keeps_original: leave the keys as they are and add the turned ones as ``turned_<key>``.

    Source: the official code, which turns source and target alike.
    Differs: it turns about a point half a voxel off the centre, so that no rotation shifts the image.
    """

    degrees: float = 10.0
    scale: tuple[float, float] = (0.9, 1.1)
    keeps_original: bool = False

    def __call__(self, batch: dict[str, Any], generator: torch.Generator) -> dict[str, Any]:
        image = batch["image"]
        uniform = torch.rand((len(image), 4), generator=generator)
        angles = (2 * uniform[:, :3] - 1) * self.degrees * pi / 180
        low, high = self.scale
        # Pulling: a position is taken nearer to the centre where the image shall grow.
        matrix = rotations(angles) / (low + (high - low) * uniform[:, 3]).view(-1, 1, 1)
        shape = image.shape[-3:]
        flow = affine_flow(matrix.to(image.device, non_blocking=True), (shape[0], shape[1], shape[2]))
        turned = {
            "image": warp(image, flow, outside="zeros"),
            "unlabelled_image": warp(batch["unlabelled_image"], flow, outside="zeros"),
        }
        label = batch["label"]
        codes = warp(label[:, None].float(), flow, mode="nearest", outside="zeros")
        turned["label"] = codes[:, 0].to(label.dtype)
        if self.keeps_original:
            return batch | {f"turned_{key}": value for key, value in turned.items()}
        return batch | turned


def rotations(angles_B3: Tensor) -> Tensor:
    """Return rotation matrices (B, 3, 3) about the axes z, y and x, in this order, for angles in radians."""
    sine, cosine = angles_B3.sin(), angles_B3.cos()
    result = torch.eye(3, dtype=angles_B3.dtype, device=angles_B3.device).expand(len(angles_B3), 3, 3)
    for axis, (first, second) in enumerate(((1, 2), (0, 2), (0, 1))):
        turn = torch.eye(3, dtype=angles_B3.dtype, device=angles_B3.device).repeat(len(angles_B3), 1, 1)
        turn[:, first, first] = turn[:, second, second] = cosine[:, axis]
        turn[:, first, second], turn[:, second, first] = -sine[:, axis], sine[:, axis]
        result = turn @ result
    return result
