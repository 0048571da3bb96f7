"""The verb compare."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medplan.errors import UsageError

if TYPE_CHECKING:
    from medplan.evaluate.compare import Entry
    from medplan.evaluate.summary import Summary
    from medplan.evaluate.training_log import Curve

__all__ = ["compare"]


def compare(*, runs: Sequence[Path], dataset: str | None, checkpoint: str, output: Path | None) -> None:
    """Set the scores of several runs side by side."""
    from medplan.evaluate.compare import compare as put_together
    from medplan.evaluate.compare import csv_of, text_of
    from medplan.evaluate.comparison_page import write_comparison
    from medplan.records import write_text

    if output is not None and output.suffix != ".html":
        raise UsageError(f"-o should name a page, such as comparison.html, found '{output}'.")
    entries = _entries(runs, dataset, checkpoint)
    comparison = put_together(entries)
    print(text_of(comparison))
    if output is not None:
        page = write_comparison(comparison, output, curves=_curves(runs))
        print(f"Page: {page}")
        print(f"Every score: {write_text(csv_of(comparison), output.with_suffix('.csv'))}")


def _entries(runs: Sequence[Path], dataset: str | None, checkpoint: str) -> list["Entry"]:
    """Return what is compared: runs whose plans differ in nothing but the seed are one entry."""
    from medplan.evaluate.compare import Entry

    members: dict[str, list[Path]] = {}
    seeds: dict[str, set[Any]] = {}
    for run in runs:
        key, seed = _settings(run)
        if key is None or seed in seeds.setdefault(key, set()):
            key = str(run.resolve())
        else:
            seeds[key].add(seed)
        members.setdefault(key, []).append(run)
    names = _names(list(members.values()))
    return [
        Entry(name=name, runs={str(run): _evaluations(run, dataset, checkpoint) for run in group})
        for name, group in zip(names, members.values(), strict=True)
    ]


def _settings(run: Path) -> tuple[str | None, Any]:
    """Return what decides about a run besides the seed, as a text, and the seed; None if it has no plan."""
    plan, record = _read(run, "plan.json"), _read(run, "run.json")
    if plan is None:
        return None, None
    plan.pop("reasons", None)
    seed = plan.get("training", {}).pop("seed", None)
    for each in plan.get("datasets", ()):  # another seed may draw other cases, but as many
        each["folds"] = [{role: len(ids) for role, ids in fold.items()} for fold in each.get("folds", ())]
    started_from = str((record or {}).get("command", "")).partition("--from")[2]
    return json.dumps([plan, started_from.split()[:1]], sort_keys=True), seed


def _names(groups: Sequence[Sequence[Path]]) -> list[str]:
    """Return what tells the groups apart: the method if that will do, else the run, else both; seeds are
    joined."""
    places = [[_place(run) for run in group] for group in groups]
    methods = {place[1] for group in places for place in group}
    for shown in ((2,) if len(methods) == 1 < len(groups) else (1,), (1, 2), (0, 1, 2), (3,)):
        each = [["+".join(dict.fromkeys(place[n] for place in group)) for n in shown] for group in places]
        names = ["/".join(dict.fromkeys(words)) for words in each]
        if len(set(names)) == len(names):
            return names
    raise UsageError("One of the runs was named twice.")


def _place(run: Path) -> tuple[str, str, str, str]:
    """Return dataset, method, run and path of a folder; what is no run of ours goes by its own name."""
    folder = run.resolve().parent if run.name.startswith("fold_") else run.resolve()
    is_ours = "__" not in folder.name and any(folder.glob("fold_*"))
    dataset, method, name = folder.parts[-3:] if is_ours else (folder.name,) * 3
    return dataset, method, name, str(run)


def _evaluations(run: Path, dataset: str | None, checkpoint: str) -> dict[str, "Summary"]:
    """Return the evaluations in a folder by fold: a run's, those of nnU-Net, or the one of predictions."""
    from medplan.evaluate.summary import read_summary

    if run.is_file() or (run / "summary.json").is_file():
        return {"": read_summary(run if run.is_file() else run / "summary.json")}
    found: dict[str, Summary] = {}
    for fold in [run] if run.name.startswith("fold_") else sorted(run.glob("fold_*")):
        places = [fold / "validation" / checkpoint, fold / "validation"]
        place = next((place for place in places if place.is_dir()), None)
        paths = [] if place is None else sorted(place.rglob("summary.json"))
        if len(paths) > 1:
            paths = [path for path in paths if path.parent.name == dataset]
            if not paths:
                raise UsageError(f"{place}: several datasets were evaluated; choose one with -d.")
        found |= {fold.name.removeprefix("fold_"): read_summary(path) for path in paths}
    if not found:
        raise UsageError(
            f"'{run}' holds no evaluation. Name a run folder (results/NAME/METHOD/RUN) whose training has "
            "ended, or a folder that 'medplan evaluate' wrote."
        )
    return found


def _curves(runs: Sequence[Path]) -> dict[str, "Curve"]:
    """Return the validation scores during training of each run's first fold that has a log."""
    from medplan.evaluate.training_log import read_log

    curves = {}
    for run, name in zip(runs, _names([[run] for run in runs]), strict=True):
        log = next(iter(sorted(run.glob("**/log.jsonl"))), None)
        curve = None if log is None else read_log(log).curves.get("validation/score")
        if log is not None and curve is not None:
            curves[f"{name}, {log.parent.name.replace('_', ' ')}"] = curve
    return curves


def _read(run: Path, name: str) -> dict[str, Any] | None:
    """Return a record of a run's first fold as it is written, or None where there is none."""
    folder = run if run.name.startswith("fold_") else next(iter(sorted(run.glob("fold_*"))), run)
    path = folder / name
    data: Mapping[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return dict(data) or None
