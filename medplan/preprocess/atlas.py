"""The image that other cases are aligned to, and the file that keeps it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medplan.data.images import Geometry, read_image, write_image

__all__ = ["Atlas", "atlas_path"]


@dataclass(frozen=True, kw_only=True)
class Atlas:
    """What other cases are aligned to.

    Attributes:
        volume: (Z, Y, X) float32, first channel of the atlas case on its prepared grid, not normalised.
        geometry: of that grid.
    """

    volume: npt.NDArray[np.float32]
    geometry: Geometry

    def save(self, path: Path) -> None:
        write_image(path, self.volume, self.geometry)

    @classmethod
    def load(cls, path: Path) -> "Atlas":
        """Read what `save` wrote. Raises DataError if it is not there."""
        image = read_image([path], channels=1)
        return cls(volume=np.asarray(image.array[0], dtype=np.float32), geometry=image.geometry)


def atlas_path(folder: Path) -> Path:
    """Return where the atlas lies beside preprocessed cases, or beside a trained model."""
    return folder / "atlas.nrrd"
