"""What the numbers in a label file mean, and the class indices that training uses in their place."""

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medplan.errors import DataError

__all__ = ["IGNORE", "LabelSpace"]

PIECE = 1 << 16
SIDE = re.compile(
    r"(?<![a-z])(left|right)(?![a-z])|(?<![a-z])[lr]h?(?![a-z0-9])|(?-i:Left|Right|(left|right)[A-Z])", re.I
)
"""In class names: ``left kidney``, ``KidneyLeft``, ``lung_L``, ``lh``; not ``bright`` or ``vertebra L1``."""
IGNORE = -1
"""Class index of voxels that were not annotated; losses and metrics leave them out."""


@dataclass(frozen=True, kw_only=True)
class LabelSpace:
    """The classes of a dataset.

    Label files hold *raw values*, any integers. Preprocessed label maps hold int16 *codes*: 0 for background,
    `IGNORE` for voxels without annotation, and

    * exclusive classes: code i + 1 for class i; the network has ``num_outputs = len(names) + 1`` outputs
      (background first) and the answer is their arg-max;
    * regions (nnU-Net's overlapping labels): code a + 1 for the a-th distinct raw value; the network has one
      output per region and no background, and each region is thresholded on its own.

    Attributes:
        names: foreground classes, in output order.
        values: per class the raw values that belong to it.
        region_order: None for exclusive classes; else the raw value that each region writes into the output
            file, later regions over earlier ones (nnU-Net's `regions_class_order`).
        ignore: raw value of voxels without annotation.
        others_are_background: True if raw values outside the classes are background on purpose (a grouping
            that leaves structures out); else they are an error.
    """

    names: tuple[str, ...]
    values: tuple[tuple[int, ...], ...]
    region_order: tuple[int, ...] | None = None
    ignore: int | None = None
    others_are_background: bool = False

    def __post_init__(self) -> None:
        if len(self.names) != len(self.values):
            raise ValueError(
                f"there are {len(self.names)} class names but {len(self.values)} lists of values"
            )
        if len(set(self.names)) != len(self.names):
            raise ValueError("two classes have the same name")
        flat = [value for values in self.values for value in values]
        if any(len(values) == 0 for values in self.values) or (0 in flat and self.region_order is None):
            raise ValueError("every class needs at least one value, and 0 is the background")
        if self.region_order is None and len(set(flat)) != len(flat):
            raise ValueError(
                "one value belongs to two classes; overlapping classes need 'regions_class_order'"
            )
        if self.region_order is not None and len(self.region_order) != len(self.names):
            raise ValueError(f"'regions_class_order' should have {len(self.names)} entries")

    @property
    def is_exclusive(self) -> bool:
        return self.region_order is None

    @property
    def num_outputs(self) -> int:
        """Number of network outputs: classes plus background, or the number of regions."""
        return len(self.names) + 1 if self.is_exclusive else len(self.names)

    @property
    def tells_sides(self) -> bool:
        """Whether class names tell left from right, so that mirroring an image would change its labels."""
        return any(SIDE.search(name) for name in self.names)

    @property
    def codes(self) -> tuple[tuple[int, ...], ...]:
        """Per code 1, 2, ... the raw values that it stands for."""
        if self.is_exclusive:
            return self.values
        return tuple((value,) for value in sorted({v for values in self.values for v in values if v != 0}))

    def membership(self) -> npt.NDArray[np.bool_]:
        """Return (num_outputs, num_codes + 1): whether voxels of that code belong to that output."""
        codes = self.codes
        if self.is_exclusive:
            return np.eye(len(codes) + 1, dtype=bool)
        table = np.zeros((len(self.names), len(codes) + 1), dtype=bool)
        for row, values in enumerate(self.values):
            for column, (value,) in enumerate(codes, start=1):
                table[row, column] = value in values
        return table

    def encode(self, raw: npt.NDArray[np.integer], *, where: str) -> npt.NDArray[np.int16]:
        """Translate raw values into codes.

        Raises: DataError naming `where` and the values if there are some that the dataset does not declare.
        """
        low, high = int(raw.min(initial=0)), int(raw.max(initial=0))
        if high - low > 2**24:
            raise DataError(f"{where}: label values reach from {low} to {high}; is this a label file?")
        unknown = np.iinfo(np.int16).min
        table = np.full(high - low + 1, 0 if self.others_are_background else unknown, dtype=np.int16)
        pairs = [(0, 0)] + [(value, code) for code, values in enumerate(self.codes, 1) for value in values]
        if self.ignore is not None:
            pairs.append((self.ignore, IGNORE))
        for value, code in pairs:
            if low <= value <= high:
                table[value - low] = code
        values, encoded = raw.reshape(-1), np.empty(raw.shape, dtype=np.int16)
        codes = encoded.reshape(-1)
        for start in range(0, raw.size, PIECE):  # indices of 8 bytes for all voxels at once would be large
            piece = slice(start, start + PIECE)
            codes[piece] = table.take(values[piece].astype(np.int64) - low)
        if (table == unknown).any() and (encoded == unknown).any():
            found = sorted(int(value) for value in np.unique(raw[encoded == unknown]))
            declared = sorted(value for values in self.values for value in values)
            raise DataError(
                f"{where}: label values {found[:10]} are not declared in dataset.json, which knows "
                f"{declared}. Declare them under 'labels', or correct the label file."
            )
        return encoded

    def decode(self, classes: npt.NDArray[np.integer]) -> npt.NDArray[np.integer]:
        """Translate predicted class indices (0 background, i + 1 class i) into the raw values of a file."""
        values = self.region_order if self.region_order is not None else tuple(v[0] for v in self.values)
        low, high = min(values, default=0), max(values, default=0)
        kind = np.int32 if low < 0 or high > 65535 else np.uint16 if high > 255 else np.uint8
        decoded: npt.NDArray[np.integer] = np.asarray((0, *values), dtype=kind)[classes]
        return decoded
