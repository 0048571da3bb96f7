"""One case as the files that it consists of."""

from dataclasses import dataclass
from pathlib import Path

__all__ = ["RawCase"]


@dataclass(frozen=True, kw_only=True)
class RawCase:
    """One case as files.

    Attributes:
        id: file name without suffix and ending.
        images: one file per channel, in order; or one file with all channels; or one DICOM folder. The files
            that the dataset description lets expect: a missing one is found by `medplan.data.checks`.
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
