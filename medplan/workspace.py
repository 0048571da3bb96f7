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
            raise UsageError(
                f"The workspace '{chosen}' ({source}) is not a folder; create it or name another."
            )
        return cls(chosen.resolve())

    @property
    def raw_data(self) -> Path:
        return self.root / "raw_data"

    def fingerprint_path(self, name: str) -> Path:
        return self.root / "plans" / name / "fingerprint.json"

    def plan_path(self, name: str, method: str) -> Path:
        return self.root / "plans" / _plain(name, "--name") / f"{method}.json"

    def preprocessed_folder(self, name: str, grid: str) -> Path:
        return self.root / "preprocessed" / name / grid

    def run_folder(self, name: str, method: str, run: str) -> Path:
        return self.root / "results" / name / method / _plain(run, "--run")

    def raw_folders(self) -> list[Path]:
        """Return every raw dataset, those of $nnUNet_raw after our own."""
        roots = [root for root in self._raw_roots() if root.is_dir()]
        return [folder for root in roots for folder in sorted(root.iterdir()) if folder.is_dir()]

    def raw_folder(self, name: str) -> Path:
        """Find a raw dataset by name, ``Dataset027_ACDC``, ``27`` or ``ACDC``; falls back to $nnUNet_raw.

        Raises: UsageError listing where was searched and the nearest known name, or naming another dataset
            of the same short name.
        """
        known: dict[str, Path] = {}
        for folder in self.raw_folders():
            for alias in _aliases(folder.name):
                known.setdefault(alias.lower(), folder)
        if name.lower() in known:
            found = known[name.lower()]
            short = _aliases(found.name)[-1]
            if known[short.lower()] != found:
                raise UsageError(
                    f"Plans and results of {found} would be filed as '{short}', as those of "
                    f"{known[short.lower()]} are; rename or move one of the two."
                )
            return found
        names = sorted({folder.name for folder in known.values()})
        listed = f"It has: {', '.join(names)}" if names else "There are no datasets in it yet"
        searched = " or ".join(map(str, self._raw_roots()))
        if "nnUNet_raw" not in os.environ:
            searched += " ($nnUNet_raw is not set, else it would be searched too)"
        raise UsageError(
            f"There is no dataset '{name}' in {searched}{did_you_mean(name, names)}. {listed}. Put a dataset "
            "there in nnU-Net's layout, or make one: 'medplan convert scans' takes any folder of scans."
        )

    def dataset_name(self, name: str) -> str:
        """Return the short name that a raw dataset's plans and results are filed under (Dataset027_ACDC ->
        ACDC).
        """
        return _aliases(self.raw_folder(name).name)[-1]

    def plan_name(self, name: str) -> str:
        """Return the name that plans and results lie under: as given where some do, else a raw dataset's."""
        is_filed = any((self.root / part / name).is_dir() for part in ("plans", "results"))
        return name if is_filed else self.dataset_name(name)

    def _raw_roots(self) -> list[Path]:
        nnunet = os.environ.get("nnUNet_raw")
        return [self.raw_data, *([Path(nnunet)] if nnunet else [])]


def _plain(name: str, flag: str) -> str:
    """Return a name that is to be that of a folder. Raises UsageError if it would lie elsewhere."""
    if not name or name.startswith(".") or "/" in name or "\\" in name:
        raise UsageError(f"{flag} '{name}': a name should hold no slash and not begin with a dot.")
    return name


def _aliases(folder: str) -> list[str]:
    """Return the names that a folder answers to; the last is the one to show."""
    nnunet = re.fullmatch(r"Dataset(\d{3})_(.+)", folder)
    if nnunet:
        return [folder, nnunet[1], str(int(nnunet[1])), nnunet[2]]
    decathlon = re.fullmatch(r"Task(\d{2})_(.+)", folder)
    if decathlon:
        return [folder, decathlon[2]]
    return [folder]
