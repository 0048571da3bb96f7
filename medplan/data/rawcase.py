"""One case as the files that it consists of."""

from dataclasses import dataclass
from pathlib import Path

__all__ = ["RawCase", "files_of"]


@dataclass(frozen=True, kw_only=True)
class RawCase:
    """One case as files.

    Attributes:
        id: file name without suffix and ending.
        images: one file per channel, in order; or one file with all channels; or one DICOM folder. They are
            the files that should be there; `medplan.data.checks` finds out which are missing.
        label: None for unlabelled cases.
        domain: scanner, centre, vendor or modality, if the dataset says.
        patient: cases of one patient are never split between training and validation.
    """

    id: str
    images: tuple[Path, ...]
    label: Path | None = None
    domain: str | None = None
    patient: str | None = None

    @property
    def is_labelled(self) -> bool:
        return self.label is not None


def files_of(path: Path) -> list[Path]:
    """Return the files that an image consists of: all in a DICOM folder; of .mhd also that of its voxels."""
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file())
    if path.suffix.lower() != ".mhd":
        return [path]
    return [path, *(file for ending in (".raw", ".zraw") if (file := path.with_suffix(ending)).is_file())]
