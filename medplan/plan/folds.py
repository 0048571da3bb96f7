"""Which case plays which role in which fold."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from medplan.errors import PlanError
from medplan.plan.overrides import Overrides
from medplan.plan.published import Split

__all__ = ["FOLD_SEED", "Entry", "assign_roles", "keep_labels", "kfold", "split"]

FOLD_SEED = 12345
NUM_FOLDS = 5

Fold = tuple[tuple[str, ...], tuple[str, ...]]
"""(training ids, validation ids)."""

Roles = dict[str, tuple[str, ...]]
"""Ids by role."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What the split has to know of a case.

    Attributes:
        typicality: distance from the middle of the dataset, for choosing an example; smaller is more typical.
        lacking: classes that other cases have and it has not.
        likeness: how much it looks like the others, for choosing an atlas; None where that is not known.
    """

    id: str
    is_labelled: bool
    domain: str | None = None
    patient: str | None = None
    typicality: float = 0.0
    lacking: int = 0
    likeness: float | None = None


def kfold(count: int, *, folds: int, seed: int) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]:
    """Split 0 .. count - 1 into (training, validation) indices, as scikit-learn's shuffled `KFold` does."""
    shuffled = np.arange(count)
    np.random.RandomState(seed).shuffle(shuffled)
    sizes = [count // folds + (number < count % folds) for number in range(folds)]
    ends = np.cumsum(sizes)
    result = []
    for size, end in zip(sizes, ends, strict=True):
        chosen = {int(index) for index in shuffled[end - size : end]}
        kept = tuple(index for index in range(count) if index not in chosen)
        result.append((kept, tuple(sorted(chosen))))
    return tuple(result)


def split(entries: Sequence[Entry]) -> tuple[tuple[Fold, ...], str]:
    """Split the labelled cases into folds; return them and the reason.

    Five folds over the sorted ids, equal to nnU-Net's. Where patients are known, all cases of a patient stay
    on one side. Fewer than five cases (or patients) give one fold each, and a single one gives one fold
    without validation.
    """
    labelled = sorted((entry for entry in entries if entry.is_labelled), key=lambda entry: entry.id)
    by_patient = any(entry.patient is not None for entry in labelled)
    groups: dict[str, list[str]] = {}
    for entry in labelled:
        groups.setdefault(entry.patient or f"case {entry.id}" if by_patient else entry.id, []).append(
            entry.id
        )
    names = sorted(groups)
    what = "patients" if by_patient else "labelled cases"
    if len(names) < 2:
        ids = tuple(entry.id for entry in labelled)
        missing = "one patient has" if by_patient and names else "one case has" if names else "no case has"
        return ((ids, ()),), f"one fold without validation: only {missing} labels"
    folds = min(NUM_FOLDS, len(names))
    result = []
    for training, validation in kfold(len(names), folds=folds, seed=FOLD_SEED):
        result.append((_members(groups, names, training), _members(groups, names, validation)))
    if folds < NUM_FOLDS:
        return tuple(result), f"{folds} folds, leaving one out: there are only {folds} {what}"
    if by_patient:
        return tuple(result), "5 folds by patient, so not nnU-Net's: a patient's scans stay on one side"
    return tuple(result), f"5 folds equal to nnU-Net's (shuffled with seed {FOLD_SEED} over sorted ids)"


def _fold(pool: Sequence[Entry], published: Split) -> Fold:
    ids = sorted(entry.id for entry in pool)
    labelled, validation = (set(published.get(role, ())) for role in ("labelled", "validation"))
    return tuple(case for case in ids if case in labelled), tuple(case for case in ids if case in validation)


def _members(groups: Mapping[str, list[str]], names: Sequence[str], chosen: Sequence[int]) -> tuple[str, ...]:
    return tuple(sorted(case for index in chosen for case in groups[names[index]]))


def keep_labels(
    training: Sequence[str], *, amount: str, everyone: Sequence[str], seed: int
) -> tuple[str, ...]:
    """Choose the training cases that keep their label; a smaller amount gives a subset of a larger one.

    Args:
        training: labelled training cases of a fold.
        amount: ``20%``, ``0.2`` or ``4``; at least one case is kept.
        everyone: all labelled cases of the dataset, so that folds agree on the order.
        seed: other seeds draw other subsets.

    Raises: PlanError if `amount` is none of these, or more than there is.
    """
    try:
        number = float(amount.rstrip("%")) / (100 if amount.endswith("%") else 1)
    except ValueError:
        number = math.nan
    is_fraction = amount.endswith("%") or "." in amount
    if not 0 < number <= (1 if is_fraction else len(training)):
        raise PlanError(
            f"--labelled {amount}: should be a percentage up to 100%, a fraction up to 1.0 or a number "
            f"of cases from 1 to {len(training)}, which is how many labelled training cases a fold has."
        )
    count = max(1, round(number * len(training))) if is_fraction else round(number)
    order = sorted(everyone)
    np.random.RandomState(seed).shuffle(order)
    own = set(training)
    return tuple(sorted([case for case in order if case in own][:count]))


def assign_roles(
    entries: Sequence[Entry],
    overrides: Overrides,
    *,
    needs: Sequence[str],
    published: Sequence[Split] = (),
    where: str,
    strict: bool = True,
) -> tuple[tuple[Roles, ...], dict[str, str]]:
    """Give every case of a dataset a role in every fold.

    Args:
        overrides: which labels and domains the user wants to be learned from.
        needs: roles that the method wants (`Needs.roles`).
        published: a split per fold to take in place of drawn folds.
        where: the dataset's name, for errors.
        strict: every domain that is named should exist; else it may belong to another dataset.

    Returns: the folds, and reasons by key.
    Raises: PlanError if a domain or a case that is named does not exist.
    """
    labelled, chosen, seed = overrides.labelled, overrides.labelled_cases, overrides.seed or 0
    _check(entries, overrides.domains if strict else (), chosen, where)
    reasons: dict[str, str] = {}
    scope = _scope_of(entries, published) if published else _scope_by_domain(entries, overrides, reasons)
    pool = [entry for entry in scope.inside if entry.is_labelled and entry.id not in scope.hidden]
    folds, reasons["folds"] = split(pool)
    if published:
        folds, reasons["folds"] = tuple(_fold(pool, one) for one in published), "as published"
    single = next((role for role in ("atlas", "support") if role in needs), None)
    template, how = _template(pool, chosen, single) if single else (None, "")
    example = {} if single is None or template is None else {single: (template,)}
    learns_labels = single is None or "labelled" in needs
    result = []
    for training, validation in folds:
        keep = tuple(case for case in training if case != template) if learns_labels else ()
        if learns_labels and chosen:
            keep = tuple(sorted(set(chosen) - {template}))
        elif learns_labels and labelled is not None:
            keep = keep_labels(keep, amount=labelled, everyone=[entry.id for entry in pool], seed=seed)
        result.append(_roles({"labelled": keep, **example}, validation, scope, entries))
    if labelled is not None and not learns_labels:
        reasons["folds.labelled"] = (
            f"the method learns from one label whatever --labelled {labelled} would leave"
        )
    elif learns_labels and (labelled is not None or chosen):
        asked = "--labelled-cases" if chosen else f"--labelled {labelled}"
        kept = len(result[0].get("labelled", ()))
        reasons["folds.labelled"] = (
            f"{kept} of {len(folds[0][0])} training cases keep their label ({asked}), seed {seed}"
        )
    if template is not None:
        reasons[f"folds.{single}"] = f"case {template} ({how}); other labelled cases serve " + (
            "training or validation" if learns_labels else "validation or are treated as unlabelled"
        )
    return tuple(result), reasons


@dataclass(frozen=True)
class _Scope:
    """The cases that take part, and ids of those kept for testing and of those whose label is not used."""

    inside: list[Entry]
    left_out: set[str]
    hidden: set[str]


def _scope_of(entries: Sequence[Entry], published: Sequence[Split]) -> _Scope:
    """Return the cases that published folds name."""
    left_out, hidden = (
        {case for one in published for case in one.get(role, ())} for role in ("test", "unlabelled")
    )
    named = {case for one in published for role, ids in one.items() if role != "test" for case in ids}
    return _without_tested([entry for entry in entries if entry.id in named], left_out, hidden, entries)


def _scope_by_domain(entries: Sequence[Entry], overrides: Overrides, reasons: dict[str, str]) -> _Scope:
    """Return the cases of the domains that the user asks for, all without such a wish; add to the reasons."""
    source, target, leave_out = overrides.domains
    left_out = {entry.id for entry in entries if leave_out is not None and entry.domain == leave_out}
    inside = [entry for entry in entries if entry.id not in left_out]
    hidden: set[str] = set()
    if source is not None or target is not None:
        sources = {entry.id for entry in inside if _is_source(entry, source, target)}
        hidden = {entry.id for entry in inside if target is None or entry.domain == target} - sources
        inside = [entry for entry in inside if entry.id in sources or entry.id in hidden]
        reasons["folds.domains"] = (
            f"labels of {source or f'all but {target}'} only, validation among them; "
            f"cases of {target or 'the other domains'} are unlabelled, their labels are not used"
        )
    if leave_out is not None:
        reasons["folds.leave_out"] = f"all {len(left_out)} cases of {leave_out} are kept for testing"
    return _without_tested(inside, left_out, hidden, entries)


def _without_tested(
    inside: Sequence[Entry], left_out: set[str], hidden: set[str], entries: Sequence[Entry]
) -> _Scope:
    """Return the scope without images of patients who are tested on."""
    tested = _patients(entries, left_out)
    return _Scope([entry for entry in inside if entry.patient not in tested], left_out, hidden)


def _roles(learned: Roles, validation: Sequence[str], scope: _Scope, entries: Sequence[Entry]) -> Roles:
    """Return the roles of a fold, given those whose labels are learned from.

    A patient whose label is learned from is not validated on; of one who is validated on no image is used.
    """
    used = {case for ids in learned.values() for case in ids}
    shown = _patients(entries, used)
    known = used | {entry.id for entry in entries if entry.patient in shown}
    held_out = _patients(entries, set(validation))
    others = {entry.id for entry in scope.inside if entry.patient not in held_out}
    roles = {
        **learned,
        "validation": tuple(case for case in validation if case not in known),
        "unlabelled": tuple(sorted(others - used - set(validation))),
        "test": tuple(sorted(scope.left_out)),
    }
    return {role: ids for role, ids in roles.items() if ids}


def _patients(entries: Sequence[Entry], ids: set[str]) -> set[str]:
    return {entry.patient for entry in entries if entry.id in ids and entry.patient is not None}


def _is_source(entry: Entry, source: str | None, target: str | None) -> bool:
    return entry.domain == source if source is not None else entry.domain != target


def _template(pool: Sequence[Entry], chosen: Sequence[str], role: str) -> tuple[str | None, str]:
    """Return the case that is the atlas or the example, and why."""
    if chosen:
        return chosen[0], "named by the user"
    if not pool:
        return None, ""
    if role == "atlas" and all(entry.likeness is not None for entry in pool):
        best = min(pool, key=lambda entry: (entry.lacking, -(entry.likeness or 0), entry.id))
        how = "of the labelled cases the most like all others once they lie alike"
        return best.id, f"{how}: mean correlation {best.likeness:.3f}"
    nearest = min(pool, key=lambda entry: (entry.typicality, entry.id))
    return nearest.id, "nearest to the median size among the labelled cases"


def _check(entries: Sequence[Entry], domains: Sequence[str | None], cases: Sequence[str], where: str) -> None:
    known_domains = sorted({entry.domain for entry in entries if entry.domain is not None})
    for domain in domains:
        if domain is not None and domain not in known_domains:
            listed = ", ".join(known_domains) or "none (dataset.json gives no 'domain' per case)"
            raise PlanError(f"{where}: there is no domain '{domain}'; the domains are {listed}.")
    labelled = {entry.id for entry in entries if entry.is_labelled}
    for case in cases:
        if case not in labelled:
            raise PlanError(f"{where}: there is no labelled case '{case}' (--labelled-cases).")
