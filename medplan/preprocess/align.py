"""Affine alignment of every case to one atlas case, and back.

Registration maximises mutual information, so intensities may differ in scale and contrast; it runs from
coarse to fine, first rigid, then affine. It is deterministic: samples are drawn with a fixed seed, on one
thread.
"""

import threading
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from medplan.data.images import Geometry, Image
from medplan.errors import DataError
from medplan.preprocess.atlas import Atlas
from medplan.preprocess.geometry import Alignment, Restoration

__all__ = ["align", "register"]

_SEED = 20
_SAMPLES = 20_000
_COARSE_MM = (8.0, 4.0, 2.0)


def align(
    image: Image, codes: npt.NDArray[np.int16] | None, atlas: Atlas, *, where: str
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int16] | None, Restoration]:
    """Align a case to the atlas and resample it onto the atlas' grid, once.

    Args:
        image: (C, Z, Y, X); its first channel is registered.
        codes: (Z, Y, X) codes, or None.
        where: named in errors.

    Returns: (C, *atlas shape) by cubic splines within the range of each channel (its minimum outside the
        image), codes by linear interpolation of each class, and the way back.
    Raises: DataError if the image cannot be registered, as when it is empty.
    """
    if image.geometry.spacing_mm is None:
        raise DataError(
            f"{where} has no spacing, so it cannot be aligned to an atlas; plan with '--no-align'."
        )
    target = _sitk(atlas.volume, atlas.geometry)
    transform = register(target, _sitk(image.array[0], image.geometry), where=where)
    channels = []
    for channel in image.array:
        low, high = float(channel.min()), float(channel.max())
        moved = sitk.Resample(
            _sitk(channel, image.geometry), target, transform, sitk.sitkBSpline, low, sitk.sitkFloat32
        )
        channels.append(np.clip(sitk.GetArrayFromImage(moved), low, high))
    if codes is not None:
        moved = sitk.Resample(_sitk(codes, image.geometry), target, transform, sitk.sitkLabelLinear, 0)
        codes = sitk.GetArrayFromImage(moved).astype(np.int16)
    inverse = transform.GetInverse()
    matrix, centre = np.reshape(inverse.GetMatrix(), (3, 3)), np.array(inverse.GetCenter())
    x, y, z = np.array(inverse.GetTranslation()) + centre - matrix @ centre
    restoration = Restoration(
        native=image.geometry,
        axes=(0, 1, 2),
        flipped=(False, False, False),
        lower=(0, 0, 0),
        upper=image.geometry.shape,
        shape=atlas.geometry.shape,
        alignment=Alignment(
            matrix=tuple(float(value) for value in matrix.ravel()),
            offset=(float(x), float(y), float(z)),
            grid=atlas.geometry,
        ),
    )
    return np.stack(channels).astype(np.float32), codes, restoration


def register(fixed: Any, moving: Any, *, where: str) -> Any:
    """Return the SimpleITK affine transform that takes points of `fixed` to points of `moving`."""
    fixed, moving = (_from_zero(_coarse(image)) for image in (fixed, moving))
    start = sitk.CenteredTransformInitializer(
        fixed, moving, sitk.Euler3DTransform(), sitk.CenteredTransformInitializerFilter.GEOMETRY
    )
    try:
        if _maximum(fixed) > 0 and _maximum(moving) > 0:
            start = sitk.CenteredTransformInitializer(
                fixed, moving, sitk.Euler3DTransform(), sitk.CenteredTransformInitializerFilter.MOMENTS
            )
        with _ONE_THREAD:
            rigid = sitk.Euler3DTransform(_optimise(fixed, moving, start, _COARSE_MM[:2]))
            affine = sitk.AffineTransform(3)
            affine.SetCenter(rigid.GetCenter())
            affine.SetMatrix(rigid.GetMatrix())
            affine.SetTranslation(rigid.GetTranslation())
            return sitk.AffineTransform(_optimise(fixed, moving, affine, _COARSE_MM[1:]))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise DataError(
            f"{where} could not be aligned to the atlas ({reason}); is it of the same body part? "
            "List it under 'exclude' in dataset.json, or plan with '--no-align'."
        ) from None


class _OneThread:
    """Holds SimpleITK to one thread while any registration runs: several sum the metric in any order."""

    def __init__(self) -> None:
        self._lock, self._inside, self._before = threading.Lock(), 0, 1

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
                sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(self._before)


_ONE_THREAD = _OneThread()


def _coarse(image: Any) -> Any:
    return sitk.Shrink(image, [max(1, round(_COARSE_MM[-1] / one)) for one in image.GetSpacing()])


def _optimise(fixed: Any, moving: Any, start: Any, levels_mm: tuple[float, ...]) -> Any:
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricSamplingStrategy(method.RANDOM)
    spacing = fixed.GetSpacing()
    voxels = float(np.prod(fixed.GetSize()))
    factors = [[max(1, round(level / one)) for one in spacing] for level in levels_mm]
    shares = [min(1.0, _SAMPLES / max(1.0, voxels / float(np.prod(factor)))) for factor in factors]
    method.SetMetricSamplingPercentagePerLevel(shares, _SEED)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetShrinkFactorsPerLevel([max(factor) for factor in factors])
    method.SetSmoothingSigmasPerLevel([level / 2 for level in levels_mm])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=4.0, minStep=0.01, numberOfIterations=150, relaxationFactor=0.6
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetInitialTransform(start, inPlace=False)
    found = method.Execute(fixed, moving)
    return found.GetBackTransform() if found.GetName() == "CompositeTransform" else found


def _from_zero(image: Any) -> Any:
    """Shift intensities so that the darkest is 0: only then is the centre of mass where the body is."""
    image = sitk.Cast(image, sitk.sitkFloat32)
    limits = sitk.MinimumMaximumImageFilter()
    limits.Execute(image)
    return image - limits.GetMinimum()


def _maximum(image: Any) -> float:
    limits = sitk.MinimumMaximumImageFilter()
    limits.Execute(image)
    return float(limits.GetMaximum())


def _sitk(array: npt.NDArray[np.generic], geometry: Geometry) -> Any:
    image = sitk.GetImageFromArray(np.ascontiguousarray(array))
    image.SetSpacing(tuple(reversed(geometry.spacing_mm or (1.0, 1.0, 1.0))))
    image.SetOrigin(geometry.origin_mm)
    image.SetDirection(geometry.direction)
    return image
