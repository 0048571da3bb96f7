"""Which trained model a verb is about, as the command line names it."""

from collections.abc import Sequence
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from medplan.errors import UsageError
from medplan.workspace import Workspace

if TYPE_CHECKING:
    from medplan.plan.schema import Fold, Plan

__all__ = ["Trained", "read_fold", "read_plan"]


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The flags that choose a trained model.

    Attributes:
        model: run folder or exported zip; without it the last run that the next three match, one that is
            finished before one that is being trained.
        dataset, method, run: what it was trained on, how, and under which name.
        folds: None takes all that are there.
        checkpoint: the weights that validation chose, or the last.
    """

    model: Path | None = None
    dataset: str | None = None
    method: str | None = None
    run: str | None = None
    folds: Sequence[str] | None = None
    checkpoint: Literal["best", "last"] = "best"

    @property
    def fold_numbers(self) -> "tuple[Fold, ...] | None":
        return None if self.folds is None else tuple(read_fold(text) for text in self.folds)

    def find(self, space: Workspace) -> Path:
        """Return the run folder, or the zip.

        Raises: UsageError if there is none, listing the runs there are.
        """
        if self.model is not None:
            return self.model
        wanted = (self.dataset and space.plan_name(self.dataset), self.method, self.run)
        pattern = "/".join(escape(part) if part else "*" for part in wanted)
        results = space.root / "results"
        found = list(results.glob(f"{pattern}/fold_*/best.pt"))
        if found:
            return max(found, key=lambda path: (_is_finished(path.parent), path.stat().st_mtime)).parents[1]
        others = sorted({str(path.parents[1]) for path in results.glob("*/*/*/fold_*/best.pt")})
        listed = f"There are: {', '.join(others)}" if others else "Nothing is trained there yet"
        asked = " ".join(
            f"{flag} {value}"
            for flag, value in zip(("-d", "-m", "--run"), (self.dataset, self.method, self.run), strict=True)
            if value is not None
        )
        raise UsageError(
            f"There is no trained model{f' for {asked}' if asked else ''} in {results}. {listed}. Another "
            "workspace is named by --workspace, a run folder or a zip by --model."
        )


def _is_finished(fold: Path) -> bool:
    """Whether a fold is not being trained, as far as its record says."""
    from medplan.train.run_folder import read_record

    record = read_record(fold)
    return record is None or record.status != "running"


def read_fold(text: str) -> "Fold":
    """Return a fold's number, or 'all', as it was written on the command line."""
    if text == "all":
        return "all"
    if not text.isdecimal():
        raise UsageError(f"--fold should be a number or 'all', found '{text}'.")
    return int(text)


def read_plan(run: Path) -> "Plan":
    """Return the plan of a run, which training will start from."""
    from medplan.plan.schema import Plan
    from medplan.predict.folder import find_folds
    from medplan.records import read_json

    return read_json(Plan, find_folds(run)[0].folder / "plan.json")
