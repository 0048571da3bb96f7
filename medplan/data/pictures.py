"""Pictures by Pillow, which reads palettes, bit masks and alpha that SimpleITK refuses or distorts.

Pictures with three channels of 16 bits are the exception: Pillow would cut them to 8 bits, so SimpleITK reads
them.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medplan.errors import DataError

__all__ = ["read", "size", "write"]

Array = npt.NDArray[Any]


def size(path: Path) -> tuple[int, int]:
    """Return (height, width) from the header. Raises DataError if there is no such picture."""
    if _is_deep_colour(path):
        _, height, width = _read_deep(path).shape
        return height, width
    with _open(path) as picture:
        return picture.height, picture.width


def read(path: Path, *, label: bool = False) -> Array:
    """Read a picture as (C, 1, Y, X), C = 1 (grey) or 3 (RGB), in the stored number type, without alpha.

    Args:
        path: .png, .jpg, .bmp or .tif with one page.
        label: whether the numbers of a palette picture are wanted, not its colours.

    Orientation notes of cameras (EXIF) are not applied, so that pictures and masks stay aligned.
    """
    if _is_deep_colour(path):
        return _read_deep(path)[:, None]
    with _open(path) as picture:
        if getattr(picture, "n_frames", 1) > 1:
            raise DataError(
                f"{path}: it holds {picture.n_frames} pages; a picture should have one. Save volumes as "
                ".nii.gz, .nrrd or .mha, which know their spacing."
            )
        try:
            array = np.asarray(_in_plain_mode(picture, label))
        except (OSError, SyntaxError, ValueError) as error:
            raise DataError(f"{path}: it cannot be read; is it complete? The reader says: {error}") from None
    if array.dtype.kind == "b":
        array = array.astype(np.uint8)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    planes = array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)
    return np.ascontiguousarray(planes[:, None])


def write(path: Path, array: Array) -> None:
    """Write (1 or 3, 1, Y, X) uint8 or uint16 as PNG."""
    import SimpleITK as sitk

    if len(array) == 1:
        image = sitk.GetImageFromArray(np.ascontiguousarray(array[0, 0]))
    else:
        image = sitk.GetImageFromArray(np.ascontiguousarray(np.moveaxis(array[:, 0], 0, -1)), isVector=True)
    sitk.WriteImage(image, str(path), True)


def _open(path: Path) -> Any:
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(path)
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file.") from None
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: it cannot be read as a picture. The reader says: {error}") from None


def _in_plain_mode(picture: Any, label: bool) -> Any:
    mode = picture.mode
    if mode in ("P", "PA"):
        if label:
            return picture if mode == "P" else picture.getchannel("P")
        colours = np.asarray(picture.convert("RGB"))
        is_grey = bool((colours == colours[..., :1]).all())
        return colours[..., 0] if is_grey else colours
    if mode == "LA" or mode == "La":
        return picture.getchannel("L")
    if mode in ("RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "LAB", "HSV"):
        return picture.convert("RGB")
    return picture


def _is_deep_colour(path: Path) -> bool:
    """Whether a PNG or TIFF has several channels of 16 bits."""
    try:
        with path.open("rb") as stream:
            head = stream.read(26)
    except OSError:
        raise DataError(f"{path}: there is no such file.") from None
    if head.startswith(b"\x89PNG"):
        return len(head) == 26 and head[24] == 16 and head[25] in (2, 6)
    if head[:4] not in (b"II*\x00", b"MM\x00*"):
        return False
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            bits = getattr(picture, "tag_v2", {}).get(258, ())
            return len(bits) > 1 and max(bits) > 8
    except UnidentifiedImageError:
        return True


def _read_deep(path: Path) -> Array:
    """Return (3, Y, X)."""
    import SimpleITK as sitk

    try:
        array = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    except RuntimeError as error:
        raise DataError(
            f"{path}: it cannot be read as a picture. The reader says: {str(error).splitlines()[-1]}"
        ) from None
    if array.ndim != 3 or array.shape[-1] not in (3, 4):
        raise DataError(
            f"{path}: expected a picture with one page and three channels, found shape {array.shape}."
        )
    return np.ascontiguousarray(np.moveaxis(array[..., :3], -1, 0))
