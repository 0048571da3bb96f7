"""Pictures and binary masks in the usual 2-D formats."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medplan.errors import DataError

__all__ = ["PICTURES", "is_coloured", "read_mask", "read_picture", "save_picture"]

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")


def read_picture(path: Path, *, coloured: bool = True) -> npt.NDArray[Any]:
    """Read a picture as (Y, X, 3) or, if not `coloured`, (Y, X); 16-bit grey stays 16-bit.

    Raises: DataError if the file is not a readable picture.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.mode.startswith("I"):
                deep = np.asarray(image).astype(np.uint16)
                return np.stack([deep] * 3, axis=-1) if coloured else deep
            return np.asarray(image.convert("RGB" if coloured else "L"))
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as a picture ({error}); fetch the file again.") from None


def is_coloured(path: Path) -> bool:
    """Tell from the header whether a picture has more than one channel. Raises: DataError as
    `read_picture`.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            return not (image.mode in ("1", "L", "LA", "F") or image.mode.startswith("I"))
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as a picture ({error}).") from None


def read_mask(path: Path, *, threshold: int = 127) -> npt.NDArray[np.uint8]:
    """Return (Y, X) with 1 where a mask picture is brighter than `threshold`; JPEG masks are never binary."""
    return (read_picture(path, coloured=False) > threshold).astype(np.uint8)


def save_picture(array: npt.NDArray[Any], path: Path) -> None:
    """Write (Y, X) or (Y, X, 3), uint8 (or uint16 when grey), as a .png file; equal arrays give equal
    bytes.
    """
    from PIL import Image

    Image.fromarray(array).save(path, format="PNG", compress_level=4)
