"""Where things lie: raw data, plans, preprocessed cases and results."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from medplan.errors import UsageError, did_you_mean

__all__ = ["Workspace"]


@dataclass(frozen=True)
class Workspace:
    """A folder with ``raw_data/``, ``plans/``, ``preprocessed/`` and ``results/``."""

    root: Path

    @classmethod
    def open(cls, root: Path | None = None) -> "Workspace":
        """Open the given folder, else $MEDPLAN_WORKSPACE, else the current directory.

        Raises: UsageError if the folder does not exist.
        """
        chosen = root or Path(os.environ.get("MEDPLAN_WORKSPACE") or ".")
        if not chosen.is_dir():
            source = "--workspace" if root else "MEDPLAN_WORKSPACE"
            raise UsageError(f"The workspace '{chosen}' ({source}) is not a folder; create it or name another.")
        return cls(chosen.resolve())

    @property
    def raw_data(self) -> Path:
        return self.root / "raw_data"

    def fingerprint_path(self, name: str) -> Path:
        return self.root / "plans" / name / "fingerprint.json"

    def plan_path(self, name: str, method: str) -> Path:
        return self.root / "plans" / name / f"{method}.json"

    def preprocessed_folder(self, name: str, grid: str) -> Path:
        return self.root / "preprocessed" / name / grid

    def run_folder(self, name: str, method: str, run: str) -> Path:
        return self.root / "results" / name / method / run

    def raw_folder(self, name: str) -> Path:
        """Find a raw dataset by name, ``Dataset027_ACDC``, ``27`` or ``ACDC``; falls back to $nnUNet_raw.

        Raises: UsageError listing where was searched and the nearest known name.
        """
        roots = [self.raw_data]
        if os.environ.get("nnUNet_raw"):
            roots.append(Path(os.environ["nnUNet_raw"]))
        known: dict[str, Path] = {}
        for root in roots:
            folders = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
            for folder in folders:
                for alias in _aliases(folder.name):
                    known.setdefault(alias.lower(), folder)
        if name.lower() in known:
            return known[name.lower()]
        names = sorted({folder.name for folder in known.values()})
        listed = f"It has: {', '.join(names)}" if names else "There are no datasets in it yet"
        raise UsageError(
            f"There is no dataset '{name}' in {' or '.join(map(str, roots))}{did_you_mean(name, names)}. {listed}. "
            "Put a dataset there in nnU-Net's layout, or make one with 'medplan convert'."
        )

    def dataset_name(self, name: str) -> str:
        """Return the short name under which plans and results of a raw dataset are filed (``Dataset027_ACDC`` -> ``ACDC``)."""
        return _aliases(self.raw_folder(name).name)[-1]


def _aliases(folder: str) -> list[str]:
    nnunet = re.fullmatch(r"Dataset(\d{3})_(.+)", folder)
    if nnunet:
        return [folder, nnunet[1], str(int(nnunet[1])), nnunet[2]]
    decathlon = re.fullmatch(r"Task(\d{2})_(.+)", folder)
    if decathlon:
        return [folder, decathlon[2]]
    return [folder]
