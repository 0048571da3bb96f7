"""Network output back onto the input's own grid, slab by slab, as class indices.

Interpolating linearly takes weighted means with weights that sum to 1. Where the eight surrounding voxels
agree on the class, their mean agrees too: only cells at borders between classes need their logits
interpolated, usually one voxel in a hundred. The result is that of interpolating everything, at a fraction of
the time, and never holds more than two slices of logits of the prepared grid besides the slab that is being
added. A slice is too little work to share among threads, which would wait for each other longer than they
compute, so NumPy does it on one.
"""

import os
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from medplan.data.labels import LabelSpace
from medplan.preprocess.geometry import Restoration
from medplan.preprocess.operators import neighbours

__all__ = ["LabelRestorer", "Restored", "class_indices"]

Logits = npt.NDArray[np.float32]
Classes = npt.NDArray[np.integer]
_Slice = tuple[Logits, Classes]

_DENSE_SHARE = 0.1
"""Share of border voxels in a slice from which interpolating all of it is faster."""


@dataclass(frozen=True, kw_only=True)
class Restored:
    """A prediction on the input's own grid.

    Attributes:
        classes: (Z, Y, X) class indices, uint8 (int16 beyond 255): 0 background, i + 1 class or region i.
        probabilities: (K, Z, Y, X) float32 per network output, a memory map where a file was asked for, or
            None.
    """

    classes: npt.NDArray[np.integer]
    probabilities: npt.NDArray[np.float32] | None = None


class LabelRestorer:
    """Turns slabs of logits on the prepared grid into classes on the input's own grid.

    Logits are interpolated linearly (voxels as areas, border values repeated), then the largest wins; of
    regions each is cut at probability 1/2, later ones over earlier ones. What was cropped away is background.
    """

    def __init__(
        self,
        restoration: Restoration,
        labels: LabelSpace,
        *,
        probabilities: bool = False,
        file: Path | None = None,
    ) -> None:
        """Set up the way back of one case.

        Args:
            restoration: of the case, from `prepare`.
            labels: of the dataset plan.
            probabilities: also keep the probability of every output.
            file: a ``.npy`` file for them; without it they lie in memory, 4 bytes per output and native
                voxel.
        """
        self._restoration = restoration
        self._labels = labels
        self._classes = np.zeros(restoration.native.shape, np.uint8 if labels.num_outputs < 255 else np.int16)
        self._target = restoration.box(self._classes)
        self._probabilities = self._allocate(file) if probabilities else None
        self._slices: dict[int, _Slice] = {}
        self._num_added = 0
        self._num_written = 0
        lower, upper, self._weight_z = neighbours(restoration.shape[0], len(self._target))
        self._lower_z, self._upper_z = lower.tolist(), upper.tolist()
        self._plane = _Plane(restoration.shape[1:], self._target.shape[1:])
        # A turned grid is crossed by every slice of the input, so aligned cases are kept until the end.
        shape = restoration.shape if restoration.alignment is not None else (0, 0, 0)
        self._whole = torch.zeros((*shape, labels.num_outputs))
        self._whole_classes = torch.zeros(
            shape, dtype=torch.uint8 if labels.num_outputs < 255 else torch.int16
        )

    def add(self, slab: Tensor) -> None:
        """Take the next slices (K, dz, Y, X) of logits along z of the prepared grid; any dz."""
        depth, height, width = self._restoration.shape
        expected = (self._labels.num_outputs, slab.shape[1], height, width)
        if tuple(slab.shape) != expected or self._num_added + slab.shape[1] > depth:
            raise ValueError(
                f"slab {tuple(slab.shape)} at z = {self._num_added} does not fit {expected} of {depth} slices"
            )
        slab = slab.detach().to("cpu")
        if self._restoration.alignment is not None:
            below = slice(self._num_added, self._num_added + slab.shape[1])
            slab = slab.to(torch.float32)
            self._whole[below] = slab.movedim(0, -1)
            self._whole_classes[below] = torch.from_numpy(class_indices(slab.numpy(), self._labels))
            self._num_added += slab.shape[1]
            return
        if slab.dtype == torch.bfloat16:
            slab = slab.float()
        for slice_KYX in slab.numpy().swapaxes(0, 1):
            # A copy, since what waits for its upper neighbour must not keep the whole slab alive.
            plane = np.array(slice_KYX, dtype=np.float32, order="C")
            self._slices[self._num_added] = (plane, class_indices(plane, self._labels))
            self._num_added += 1
            self._write()

    def finish(self) -> Restored:
        """Return the result after the last slab."""
        if self._num_added != self._restoration.shape[0]:
            raise ValueError(f"only {self._num_added} of {self._restoration.shape[0]} slices were added")
        if self._restoration.alignment is not None:
            self._write_from_atlas(self._whole, self._whole_classes)
        if isinstance(self._probabilities, np.memmap):
            self._probabilities.flush()
        return Restored(classes=self._classes, probabilities=self._probabilities)

    def _allocate(self, file: Path | None) -> npt.NDArray[np.float32]:
        shape = (self._labels.num_outputs, *self._restoration.native.shape)
        array: npt.NDArray[np.float32]
        if file is None:
            array = np.zeros(shape, dtype=np.float32)
        else:
            array = np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=shape)
            # Where the disk is full this is an error; to write to the map later would end the process.
            if hasattr(os, "posix_fallocate"):
                with file.open("r+b") as stream:
                    os.posix_fallocate(stream.fileno(), 0, stream.seek(0, os.SEEK_END))
        if self._labels.is_exclusive:
            array[0] = 1
        return array

    def _write(self) -> None:
        """Write every output slice whose two neighbours have arrived, and forget what no later one needs."""
        while self._num_written < len(self._target) and self._upper_z[self._num_written] < self._num_added:
            z = self._num_written
            self._write_slice(z, self._slices[self._lower_z[z]], self._slices[self._upper_z[z]])
            self._num_written += 1
        needed = (
            self._lower_z[self._num_written] if self._num_written < len(self._target) else self._num_added
        )
        for z in [z for z in self._slices if z < needed]:
            del self._slices[z]

    def _write_slice(self, z: int, lower: _Slice, upper: _Slice) -> None:
        weight = float(self._weight_z[z])
        if self._probabilities is not None:
            logits = self._plane.dense(_between(lower[0], upper[0], weight))
            probabilities = _probabilities(torch.from_numpy(logits), self._labels)
            self._restoration.box(self._probabilities)[:, z] = probabilities.numpy()
            self._target[z] = class_indices(logits, self._labels)
            return
        if weight == 0:
            upper = lower
        classes, border = self._plane.certain(lower[1], upper[1])
        if len(border) > _DENSE_SHARE * classes.size:
            logits = self._plane.dense(_between(lower[0], upper[0], weight))
            self._target[z] = class_indices(logits, self._labels)
            return
        if len(border):
            below = self._plane.sparse(lower[0], border)
            logits = (
                below if upper is lower else _between(below, self._plane.sparse(upper[0], border), weight)
            )
            classes.reshape(-1)[border] = class_indices(logits, self._labels)
        self._target[z] = classes

    def _write_from_atlas(self, logits: Tensor, classes: Tensor) -> None:
        """Look every voxel of the input up in the atlas' grid, slice by slice; outside it is background.

        Args:
            logits: (Z, Y, X, K), so that the outputs of one voxel lie side by side.
            classes: (Z, Y, X), the class of each voxel.
        """
        matrix, offset = self._restoration.to_atlas()
        depth, height, width = self._target.shape
        size = np.array(self._restoration.shape)
        strides = torch.tensor([size[1] * size[2], size[2], 1])
        flat, flat_classes = logits.flatten(0, 2), classes.flatten()
        pixels = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"), axis=-1)
        plane = pixels.reshape(-1, 2) @ matrix[:, 1:].T
        for z in range(depth):
            position = plane + (matrix[:, 0] * z + offset)
            inside = np.flatnonzero(((position >= -0.5) & (position <= size - 0.5)).all(axis=1))
            if not len(inside):
                continue
            clamped = torch.from_numpy(np.clip(position[inside], 0, size - 1))
            base = clamped.floor().long()
            weight = (clamped - base).to(torch.float32)
            step = torch.minimum(base + 1, torch.from_numpy(size - 1)) - base
            first = base @ strides
            corners = [first + (step * torch.tensor(sides)) @ strides for sides in product((0, 1), repeat=3)]
            found = flat_classes[first]
            border = torch.zeros_like(found, dtype=torch.bool)
            for corner in corners[1:]:
                border |= flat_classes[corner] != found
            where = (
                torch.arange(len(first)) if self._probabilities is not None else border.nonzero().squeeze(1)
            )
            mixed = torch.zeros((len(where), flat.shape[1]))
            for sides, index in zip(product((0, 1), repeat=3), corners, strict=True):
                upper = torch.tensor(sides)
                part = weight[where] * upper + (1 - weight[where]) * (1 - upper)
                mixed.addcmul_(flat[index[where]], part.prod(dim=1, keepdim=True))
            found[where] = torch.from_numpy(class_indices(mixed.T.numpy(), self._labels))
            self._target[z].reshape(-1)[inside] = found.numpy()
            if self._probabilities is not None:
                view = self._restoration.box(self._probabilities)[:, z].reshape(len(mixed.T), -1)
                view[:, inside] = _probabilities(mixed.T, self._labels).numpy()


class _Plane:
    """Linear interpolation from one slice (Y, X) to another size."""

    def __init__(self, old: tuple[int, ...], new: tuple[int, ...]) -> None:
        self._old, self._new = (old[0], old[1]), (new[0], new[1])
        (y0, y1, wy), (x0, x1, wx) = (neighbours(a, b) for a, b in zip(old, new, strict=True))
        self._y, self._x = (y0, y1), (x0, x1)
        self._weight_y, self._weight_x = wy.astype(np.float32), wx.astype(np.float32)

    def dense(self, logits: Logits) -> Logits:
        """Interpolate (K, Y, X) everywhere."""
        if self._old == self._new:
            return logits
        volume = torch.from_numpy(logits)[None]
        dense: Logits = interpolate(volume, size=self._new, mode="bilinear", align_corners=False)[0].numpy()
        return dense

    def certain(self, lower: Classes, upper: Classes) -> tuple[Classes, npt.NDArray[np.intp]]:
        """Return the class of every new pixel as if it were certain, and the flat indices where it is not.

        Args:
            lower, upper: classes (Y, X) in the slices below and above.
        """
        agree = lower == upper
        for axis in (0, 1):
            if lower.shape[axis] > 1:
                first, second = (
                    (slice(None),) * axis + (slice(-1),),
                    (slice(None),) * axis + (slice(1, None),),
                )
                agree[first] = agree[first] & agree[second] & (lower[first] == lower[second])
        marked = np.where(agree, lower, _uncertain(lower.dtype))
        # Along the rows first: whole rows are then copied at once.
        classes = np.take(np.take(marked, self._x[0], axis=1), self._y[0], axis=0)
        return classes, np.flatnonzero(classes == _uncertain(lower.dtype))

    def sparse(self, logits: Logits, where: npt.NDArray[np.intp]) -> Logits:
        """Interpolate (K, Y, X) at flat indices of the new slice; returns (K, n)."""
        row, column = np.divmod(where, self._new[1])
        flat = logits.reshape(len(logits), -1)
        above, below = self._y[0][row] * self._old[1], self._y[1][row] * self._old[1]
        left, right = self._x[0][column], self._x[1][column]
        across, down = self._weight_x[column], self._weight_y[row]
        top = _between(np.take(flat, above + left, axis=1), np.take(flat, above + right, axis=1), across)
        bottom = _between(np.take(flat, below + left, axis=1), np.take(flat, below + right, axis=1), across)
        return _between(top, bottom, down)


def _between(first: Logits, second: Logits, weight: float | Logits) -> Logits:
    """Return the mean of both in which `second` has that weight, as a new array."""
    mixed = second - first
    mixed *= weight
    mixed += first
    return mixed


def _uncertain(kind: np.dtype[np.integer]) -> np.integer:
    """Return the value that marks a cell whose corners differ: the one that is no class index."""
    return kind.type(255 if kind == np.uint8 else -1)


def class_indices(logits: Logits, labels: LabelSpace) -> Classes:
    """Return the class indices (...) that logits (K, ...) stand for; of equal outputs the first wins.

    Exclusive classes take the largest output; of regions the last one above 0 (probability 1/2) counts.
    """
    classes = np.zeros(logits.shape[1:], np.uint8 if labels.num_outputs < 255 else np.int16)
    if labels.is_exclusive:
        # Several times faster than argmax over the outermost axis.
        best = logits[0].copy()
        for index, output in enumerate(logits[1:], start=1):
            np.putmask(classes, output > best, classes.dtype.type(index))
            np.maximum(best, output, out=best)
        return classes
    for index, region in enumerate(logits):
        np.putmask(classes, region > 0, classes.dtype.type(index + 1))
    return classes


def _probabilities(logits: Tensor, labels: LabelSpace) -> Tensor:
    return logits.softmax(dim=0) if labels.is_exclusive else logits.sigmoid()
