"""File endings of the formats that are read and written."""

import os

__all__ = ["IMAGE_ENDINGS", "PICTURE_ENDINGS", "VOLUME_ENDINGS", "ending_of", "stem_of"]

VOLUME_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")
PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
IMAGE_ENDINGS = VOLUME_ENDINGS + PICTURE_ENDINGS


def ending_of(path: str | os.PathLike[str]) -> str:
    """Return the ending in lower case, ``.nii.gz`` as a whole; an empty string if it is not a known one."""
    name = os.path.basename(os.fspath(path)).lower()
    return next((ending for ending in IMAGE_ENDINGS if name.endswith(ending)), "")


def stem_of(path: str | os.PathLike[str]) -> str:
    """Return the file name without the known ending."""
    name = os.path.basename(os.fspath(path))
    return name[: len(name) - len(ending_of(path))]
