"""What prediction notes of each case in a hidden folder beside the label maps. torch is not needed."""

from dataclasses import dataclass
from pathlib import Path

from medplan.records import read_json

__all__ = ["NOTES", "Output", "output_path", "read_outputs"]

NOTES = ".medplan"


@dataclass(frozen=True, kw_only=True)
class Output:
    """What an output was made from, the sha256 of every file of it, by name, and where its images lay."""

    made_from: str
    files: dict[str, str]
    images: tuple[str, ...] = ()


def output_path(folder: Path, case: str) -> Path:
    """Return where the note about a case lies."""
    return folder / NOTES / f"{case}.json"


def read_outputs(folder: Path) -> dict[str, Output]:
    """Return the notes in a folder of predictions by case; none where other programs made them."""
    return {path.stem: read_json(Output, path) for path in sorted((folder / NOTES).glob("*.json"))}
