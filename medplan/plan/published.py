"""Splits that papers have published, as the key ``splits`` of dataset.json keeps them."""

from collections.abc import Mapping, Sequence

from medplan.errors import PlanError, did_you_mean

__all__ = ["Split", "Splits", "choose_split"]

Split = Mapping[str, Sequence[str]]
"""Case ids by role: ``labelled``, ``unlabelled``, ``validation``, ``test``."""

Splits = Mapping[str, Split]


def choose_split(splits: Splits, named: str | None, *, where: str) -> tuple[Split | None, str]:
    """Return the split to take in place of drawn folds, or None, and what to say about it.

    A split into labelled, validation and perhaps test cases is taken by itself. One that hides labels has to
    be asked for.

    Args:
        named: by the user; ``none`` takes no split.
        where: the dataset's name, for errors.

    Raises: PlanError if there is no split of that name.
    """
    if named not in (None, "none"):
        if named not in splits:
            known = f"; dataset.json has {', '.join(sorted(splits))}" if splits else ", nor any other"
            near = did_you_mean(str(named), splits)
            raise PlanError(f"{where}: there is no split '{named}'{near}{known} (--split).")
        return splits[str(named)], f"one fold, the published split '{named}' (--split)"
    if named == "none" or not splits:
        return None, ""
    whole = [
        name
        for name, split in splits.items()
        if split.get("labelled") and split.get("validation") and not split.get("unlabelled")
    ]
    if len(whole) == 1:
        return splits[whole[0]], f"one fold, the published split '{whole[0]}' ('--split none' draws folds)"
    return None, f"; published splits to ask for with --split: {', '.join(sorted(splits))}"
