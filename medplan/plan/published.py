"""Splits that papers have published, as the key ``splits`` of dataset.json keeps them."""

from collections.abc import Mapping, Sequence

from medplan.data.folds_file import FOLDS_FILE
from medplan.errors import PlanError, did_you_mean

__all__ = ["Split", "Splits", "choose_split"]

Split = Mapping[str, Sequence[str]]
"""Case ids by role: ``labelled``, ``unlabelled``, ``validation``, ``test``."""

Splits = Mapping[str, Split]


def choose_split(
    splits: Splits, named: str | Sequence[Split] | None, *, where: str
) -> tuple[tuple[Split, ...], str]:
    """Return a split per fold to take in place of drawn folds, or none, and what to say about it.

    Folds of a splits_final.json, and a split into labelled, validation and perhaps test cases, are taken by
    themselves. One that hides labels has to be asked for.

    Args:
        named: by the user; ``none`` takes no split. Or the folds that the user gives.
        where: the dataset's name, for errors.

    Raises: PlanError if there is no split of that name.
    """
    if named is not None and not isinstance(named, str):
        return tuple(named), "folds as in the file that --split names"
    if named not in (None, "none"):
        if named not in splits:
            known = f"; dataset.json has {', '.join(sorted(splits))}" if splits else ", nor any other"
            near = did_you_mean(str(named), splits)
            raise PlanError(f"{where}: there is no split '{named}'{near}{known} (--split).")
        return (splits[str(named)],), f"one fold, the published split '{named}' (--split)"
    if named == "none" or not splits:
        return (), ""
    if chosen := tuple(split for name, split in splits.items() if name.startswith(FOLDS_FILE)):
        return chosen, f"folds as in {FOLDS_FILE} ('--split none' draws folds)"
    whole = [
        name
        for name, split in splits.items()
        if split.get("labelled") and split.get("validation") and not split.get("unlabelled")
    ]
    if len(whole) == 1:
        return (splits[whole[0]],), f"one fold, the published split '{whole[0]}' ('--split none' draws folds)"
    return (), f"; published splits to ask for with --split: {', '.join(sorted(splits))}"
