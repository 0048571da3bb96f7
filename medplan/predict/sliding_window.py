"""The Gaussian-weighted sliding window, streamed: logits leave as finished slabs along z.

Windows are visited in order of z. Only the planes that later windows still reach are held, in a ring of as
many planes as a window is deep; planes that no later window reaches are handed on and their place is used
again. So the memory does not depend on the number of slices. The weights of a window are separable and each
axis is normalised beforehand: what the ring adds up is finished logits, and no volume of weights is kept.

Where the memory of a GPU does not suffice, fewer windows go through the network at once, and at last the ring
moves to the host.
"""

# Shapes: B windows, C channels, K outputs, Z Y X voxels of the case; a window is (pz, py, px).

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import combinations, product

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medplan.data.labels import LabelSpace
from medplan.errors import MethodError
from medplan.method import Predictor
from medplan.samples.cases import Case

__all__ = ["ahead", "choose_batch_size", "classes_of", "predict_case", "predict_classes"]

Voxel = tuple[int, int, int]
Autocast = Callable[[], AbstractContextManager[object]]

logger = logging.getLogger(__name__)

SIGMA_PER_PATCH = 1 / 8
RING_BYTES = 2**30
SLAB_BYTES = 2**27
WINDOW_BYTES = 2**30


def predict_case(
    predictors: Predictor | Sequence[Predictor],
    case: Case,
    *,
    patch_size: Voxel,
    num_outputs: int,
    step: float = 0.5,
    mirror_axes: Sequence[int] = (),
    device: torch.device | str = "cpu",
    batch_size: int | None = None,
    autocast: Autocast = nullcontext,
    ring_bytes: int = RING_BYTES,
) -> Iterator[Tensor]:
    """Yield the logits of a case slab by slab along z, complete and in order.

    Args:
        predictors: of one model or of several, whose logits are averaged window by window.
        case: the preprocessed case; parts of windows outside it are 0.
        patch_size: window (z, y, x) in voxels; where the case is smaller, the window reaches past both its
            ends.
        num_outputs: K, `LabelSpace.num_outputs`.
        step: distance of neighbouring windows as a fraction of the window, in (0, 1].
        mirror_axes: axes 0 (z), 1 (y), 2 (x); the logits are averaged over every combination of flips.
        device: where the predictors live.
        batch_size: windows per forward pass; None chooses by memory.
        autocast: returns the context that the predictors run in.
        ring_bytes: the logits that are not finished yet are kept in float32 if they fit, else in float16 (an
            error of about 1e-3 of a logit's size).

    Yields: (K, dz, Y, X) float32 on `device`, or on the host where the logits do not fit there; at least one
        plane and at most about 128 MiB each. The planes of all slabs together are those of the case.
    Raises: MethodError if a predictor returns something of another shape.
    Source: Isensee et al. 2021, doi:10.1038/s41592-020-01008-z (Gaussian weights of a eighth of the window,
        half overlap). Differs: weights are normalised per axis, so that corners of the case need no lower
        limit.
    """
    several = (predictors,) if callable(predictors) else tuple(predictors)
    if not several or not 0 < step <= 1:
        raise ValueError(
            f"at least one predictor and a step in (0, 1] are needed, found {len(several)} and {step}"
        )
    corners = [_corners(size, patch, step) for size, patch in zip(case.shape, patch_size, strict=True)]
    depth = min(patch_size[0], case.shape[0])
    ring = _make_ring((num_outputs, depth, *case.shape[1:]), ring_bytes, torch.device(device))
    weights = [
        torch.as_tensor(_axis_weights(size, patch, starts), dtype=torch.float32, device=ring.device)
        for size, patch, starts in zip(case.shape, patch_size, corners, strict=True)
    ]
    windows = list(product(*(list(enumerate(starts)) for starts in corners)))
    forward = partial(_forward, several, case, patch_size, num_outputs, mirror_axes, torch.device(device))
    scale = 1.0 / (len(several) * 2 ** len(mirror_axes))
    done, finished, size = 0, 0, batch_size or choose_batch_size(patch_size, num_outputs)
    while done < len(windows):
        batch = windows[done : done + size]
        lowest = [(z, y, x) for (_, z), (_, y), (_, x) in batch]
        found: Tensor | None = None
        try:
            found = _in_range(partial(forward, lowest), autocast, torch.device(device), case)
        except torch.OutOfMemoryError:
            if len(batch) == 1 and ring.device.type == "cpu":
                raise
        # Not while the error is handled: it holds on to what the network has computed.
        if found is None:
            size = max(1, len(batch) // 2)
            if len(batch) == 1:
                logger.info("A window of '%s' needs all memory: logits are added on the host.", case.key)
                ring, weights = ring.cpu(), [axis.cpu() for axis in weights]
            continue
        for window, corner, logits_KZYX in zip(batch, lowest, found.to(ring.device), strict=True):
            if corner[0] > finished:
                yield from _hand_on(ring, finished, corner[0])
                finished = corner[0]
            weight = [axis[index] for axis, (index, _) in zip(weights, window, strict=True)]
            _add(ring, logits_KZYX, corner, weight, case.shape, scale)
        done += len(batch)
        del found, logits_KZYX
    yield from _hand_on(ring, finished, case.shape[0])


def predict_classes(
    predictors: Predictor | Sequence[Predictor],
    case: Case,
    labels: LabelSpace,
    *,
    patch_size: Voxel,
    device: torch.device | str = "cpu",
    autocast: Autocast = nullcontext,
) -> npt.NDArray[np.int16]:
    """Return (Z, Y, X) codes on the preprocessed grid, to be compared with `case.label()`.

    The arguments are those of `predict_case`. Regions are painted in their order, as into an output file;
    their own masks come back with ``labels.membership()[:, codes]``.
    """
    slabs = predict_case(
        predictors,
        case,
        patch_size=patch_size,
        num_outputs=labels.num_outputs,
        device=device,
        autocast=autocast,
    )
    codes = np.empty(case.shape, dtype=np.int16)
    table = _codes_of_classes(labels)
    plane = 0
    for slab in slabs:
        codes[plane : plane + slab.shape[1]] = table[classes_of(slab, labels).to(torch.int16).cpu().numpy()]
        plane += slab.shape[1]
    return codes


def ahead(slabs: Iterator[Tensor]) -> Iterator[Tensor]:
    """Yield slabs, brought to the host, while a thread has the device compute the next one.

    The thread brings them, too: a copy waits for everything that the device was given before.
    """

    def fetch() -> Tensor | None:
        slab = next(slabs, None)
        return None if slab is None else slab.cpu()

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="slabs") as worker:
        coming = worker.submit(fetch)
        while (slab := coming.result()) is not None:
            coming = worker.submit(fetch)
            yield slab


def classes_of(logits_KZYX: Tensor, labels: LabelSpace) -> Tensor:
    """Return (Z, Y, X) int64 class indices, 0 for background: arg-max, or regions above 0 in their order."""
    if labels.is_exclusive:
        return logits_KZYX.argmax(0)
    classes = torch.zeros(logits_KZYX.shape[1:], dtype=torch.int64, device=logits_KZYX.device)
    for index in range(len(labels.names)):
        classes[logits_KZYX[index] > 0] = index + 1
    return classes


def choose_batch_size(patch_size: Voxel, num_outputs: int) -> int:
    """Return how many windows go through the network at once: 1 to 16, within about a gibibyte.

    A function of sizes only, so that a prediction repeated at another load of the machine gives the same
    bytes.
    """
    # 512 bytes: four full-resolution feature maps of 32 channels in float32, the widest point of a U-Net.
    return max(1, min(16, WINDOW_BYTES // (math.prod(patch_size) * (512 + 8 * num_outputs))))


def _corners(size: int, patch: int, step: float) -> tuple[int, ...]:
    """Spread windows evenly from end to end, at most `step` windows apart; a larger window is centred."""
    if size <= patch:
        return (-((patch - size) // 2),)
    number = math.ceil((size - patch) / max(1.0, patch * step)) + 1
    return tuple(round(i * (size - patch) / (number - 1)) for i in range(number))


def _axis_weights(size: int, patch: int, corners: Sequence[int]) -> npt.NDArray[np.float64]:
    """Return (windows, patch): Gaussian weights that add up to 1 at every voxel of the axis, 0 outside it."""
    places = np.asarray(corners)[:, None] + np.arange(patch)
    sigma = patch * SIGMA_PER_PATCH
    gauss = np.exp(-0.5 * ((np.arange(patch) - (patch - 1) / 2) / sigma) ** 2)
    weights = np.where((places >= 0) & (places < size), gauss, 0.0)
    total = np.zeros(size)
    inside = (places >= 0) & (places < size)
    np.add.at(total, places[inside], weights[inside])
    return weights / total[np.clip(places, 0, size - 1)]


def _make_ring(shape: tuple[int, ...], ring_bytes: int, device: torch.device) -> Tensor:
    kind = torch.float32 if 4 * math.prod(shape) <= ring_bytes else torch.float16
    try:
        return torch.zeros(shape, dtype=kind, device=device)
    except torch.OutOfMemoryError:
        logger.info(
            "The logits of a case do not fit into the memory of %s: they are added on the host.", device
        )
    return torch.zeros(shape, dtype=kind)


def _forward(
    predictors: Sequence[Predictor],
    case: Case,
    patch_size: Voxel,
    num_outputs: int,
    mirror_axes: Sequence[int],
    device: torch.device,
    corners: Sequence[Voxel],
) -> Tensor:
    """Return the sum over predictors and flips of the logits (B, K, pz, py, px)."""
    pixels = [
        case.image(corner, (corner[0] + patch_size[0], corner[1] + patch_size[1], corner[2] + patch_size[2]))
        for corner in corners
    ]
    patches = torch.from_numpy(np.stack(pixels))
    if device.type == "cuda":
        # From other memory the copy would wait for the windows before.
        patches = patches.pin_memory()
    patches = patches.to(device, non_blocking=True)
    flips = [axes for number in range(len(mirror_axes) + 1) for axes in combinations(mirror_axes, number)]
    total: Tensor | None = None
    for axes in flips:
        dims = [axis + 2 for axis in axes]
        turned = patches.flip(dims) if dims else patches
        for predictor in predictors:
            logits = predictor(turned, corners, axes)
            expected = (len(corners), num_outputs, *patch_size)
            if tuple(logits.shape) != expected:
                raise MethodError(
                    f"case '{case.key}': the method's predictor returned logits of shape "
                    f"{tuple(logits.shape)}, expected {expected}; it has to answer on the patches' grid "
                    "with one output per class."
                )
            logits = logits.flip(dims) if dims else logits
            if total is None:
                # A predictor may return a tensor that it keeps; only a sum may be written to.
                total = logits.float().clone() if len(flips) * len(predictors) > 1 else logits
            else:
                total += logits
    assert total is not None
    return total


def _in_range(forward: Callable[[], Tensor], autocast: Autocast, device: torch.device, case: Case) -> Tensor:
    """Return what `forward` does, in full precision where float16 does not hold it."""
    kind = device.type
    with torch.no_grad(), autocast():
        found = forward()
        is_narrow = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16
    if is_narrow and not bool(found.isfinite().all()):
        logger.info("Windows of '%s' do not fit into float16; they are predicted in float32.", case.key)
        with torch.no_grad():
            found = forward()
    return found


def _add(
    ring: Tensor,
    logits_KZYX: Tensor,
    corner: Sequence[int],
    weight: Sequence[Tensor],
    shape: Voxel,
    scale: float,
) -> None:
    """Add a weighted window, cut to the case, to the ring; plane z of the case lies at z modulo the ring's
    depth."""
    lower = [max(0, -start) for start in corner]
    upper = [
        min(side, size - start)
        for side, size, start in zip(logits_KZYX.shape[1:], shape, corner, strict=True)
    ]  # fmt: skip
    (z0, y0, x0), (z1, y1, x1) = lower, upper
    weight_ZYX = weight[0][z0:z1, None, None] * weight[1][y0:y1, None] * weight[2][x0:x1] * scale
    rows = slice(corner[1] + y0, corner[1] + y1)
    columns = slice(corner[2] + x0, corner[2] + x1)
    depth = ring.shape[1]
    for first, last in _ring_spans(corner[0] + z0, corner[0] + z1, depth):
        part = slice(first - corner[0], last - corner[0])
        place = slice(first % depth, first % depth + last - first)
        ring[:, place, rows, columns].addcmul_(
            logits_KZYX[:, part, y0:y1, x0:x1], weight_ZYX[first - corner[0] - z0 : last - corner[0] - z0]
        )


def _hand_on(ring: Tensor, first: int, last: int) -> Iterator[Tensor]:
    """Yield planes [first, last) of the case as float32 slabs and clear their place."""
    depth = ring.shape[1]
    planes = max(1, SLAB_BYTES // (4 * math.prod(ring.shape) // depth))
    for start, stop in _ring_spans(first, last, depth):
        for lower in range(start, stop, planes):
            upper = min(lower + planes, stop)
            held = ring[:, lower % depth : lower % depth + upper - lower]
            slab = held.to(torch.float32, copy=True)
            held.zero_()
            yield slab


def _ring_spans(first: int, last: int, depth: int) -> Iterator[tuple[int, int]]:
    """Cut [first, last) where it passes the end of the ring."""
    while first < last:
        end = min(last, first - first % depth + depth)
        yield first, end
        first = end


def _codes_of_classes(labels: LabelSpace) -> npt.NDArray[np.int16]:
    """Return per class index (0 background) the code that `LabelSpace.encode` gives what is written for
    it."""
    if labels.is_exclusive:
        return np.arange(labels.num_outputs, dtype=np.int16)
    assert labels.region_order is not None
    code_of = {value: code for code, values in enumerate(labels.codes, 1) for value in values}
    return np.array([0, *(code_of.get(value, 0) for value in labels.region_order)], dtype=np.int16)
