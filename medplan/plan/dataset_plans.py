"""The part of a plan that belongs to one dataset: roles of cases, normalisation, share of the samples."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import sqrt
from typing import TYPE_CHECKING, Any

from medplan.data.labels import LabelSpace
from medplan.errors import MethodError, PlanError, did_you_mean
from medplan.plan import summary as read
from medplan.plan.folds import assign_roles
from medplan.plan.grids import choose_normalisation
from medplan.plan.label_groups import group_labels
from medplan.plan.overrides import Overrides
from medplan.plan.published import Split, choose_split
from medplan.plan.schema import DatasetPlan, Normalisation
from medplan.records import decode, encode

if TYPE_CHECKING:
    from medplan.method import Needs
    from medplan.plan.fingerprint import Fingerprint

__all__ = ["fold_roles", "plan_datasets"]

COLOUR_ENDS = (1.0, 255.0, 65535.0)
"""Of what colours are stored as: shares, 8 bits or 16 bits."""


def plan_datasets(
    method: str,
    needs: "Needs",
    fingerprints: Sequence["Fingerprint"],
    overrides: Overrides,
    reasons: dict[str, str],
    *,
    extra: Mapping[str, Mapping[str, Any]] | None = None,
) -> tuple[DatasetPlan, ...]:
    """Plan every dataset, those that are only pretrained on last; add to `reasons`.

    Args:
        extra: volumes that the method wants besides (`DatasetPlan.extra`).

    Raises: MethodError if no fold has a case of a role that the method needs; PlanError if channels differ,
        or no dataset has a class that is said to be novel.
    """
    facts = [each for each in fingerprints if each.name not in overrides.pretrain_on]
    others = [each for each in fingerprints if each.name in overrides.pretrain_on]
    _check_channels(facts)
    _check_cases(facts, overrides)
    _check_novel(facts, overrides)
    several = len(facts) > 1
    planned = [_learned(needs, each, overrides, extra or {}, several=several) for each in facts]
    planned += [_for_pretraining(needs, each) for each in others]
    if several:
        weights = [
            sqrt(max(1, sum(case.is_labelled for case in each.cases)) * len(each.labels.names))
            for each in facts
        ]
        for number, weight in enumerate(weights):
            dataset, why = planned[number]
            why["share"] = (
                "proportional to the root of labelled cases x classes: large sets do not drown small ones"
            )
            planned[number] = replace(dataset, share=round(weight / sum(weights), 4)), why
    for number, (_, why) in enumerate(planned):
        reasons.update({f"datasets.{number}.{key}": text for key, text in why.items()})
    datasets = tuple(dataset for dataset, _ in planned)
    _check_roles(method, needs, datasets)
    return datasets


def _learned(
    needs: "Needs",
    facts: "Fingerprint",
    overrides: Overrides,
    extra: Mapping[str, Mapping[str, Any]],
    *,
    several: bool,
) -> tuple[DatasetPlan, dict[str, str]]:
    """Plan a dataset whose classes are learned, and give the reasons by key."""
    wanted = (*needs.roles, *needs.optional_roles)
    folds, why = fold_roles(facts, overrides, needs=wanted, several=several)
    labels = _labels(facts, overrides)
    if overrides.label_groups is not None:
        why["labels"] = (
            f"{len(labels.names)} groups of the dataset's {len(facts.labels.names)} classes, everything "
            "else is background (--label-groups)"
        )
    novel = tuple(name for name in labels.names if name in overrides.novel)
    if novel:
        why["novel"] = "kept out of learning by the user (--novel)"
    dataset = replace(
        _described(needs, facts, why),
        labels=labels,
        folds=folds,
        novel=novel,
        extra=decode(dict[str, dict[str, Any]], encode(extra), where=facts.name),
    )
    return dataset, why


def _for_pretraining(needs: "Needs", facts: "Fingerprint") -> tuple[DatasetPlan, dict[str, str]]:
    """Plan a dataset whose images serve the first phases only, and give the reasons by key."""
    why = {"folds": "images for the first phases only (--pretrain-on)"}
    everyone = tuple(sorted(case.id for case in facts.cases))
    return replace(_described(needs, facts, why), folds=({"pretrain": everyone},)), why


def _described(needs: "Needs", facts: "Fingerprint", why: dict[str, str]) -> DatasetPlan:
    """Return what a plan says of any dataset, without folds; add to the reasons."""
    normalisations = []
    for channel in range(len(facts.channels)):
        scheme, why[f"normalisations.{channel}"] = _normalisation(needs, facts, channel)
        normalisations.append(scheme)
    return DatasetPlan(
        name=facts.name,
        channels=facts.channels,
        modalities=facts.modalities,
        labels=facts.labels,
        normalisations=tuple(normalisations),
        folds=(),
        domains={case.id: case.domain for case in facts.cases if case.domain is not None},
        file_ending=facts.file_ending,
        median_spacing_mm=facts.median_spacing_mm,
        has_oblique_cases=any(case.is_oblique for case in facts.cases),
    )


def fold_roles(
    facts: "Fingerprint", overrides: Overrides, *, needs: Sequence[str], several: bool
) -> tuple[tuple[dict[str, tuple[str, ...]], ...], dict[str, str]]:
    """Give every case of a dataset its role in every fold; see `assign_roles`.

    Args:
        several: there are more datasets; each is then a domain by its name, unless it names domains.
    """
    ids = {case.id for case in facts.cases}
    chosen = tuple(case for case in overrides.labelled_cases if not several or case in ids)
    named = overrides.split
    if any(overrides.domains):
        if named not in (None, "none"):
            raise PlanError("--split says itself which cases are learned from; name no domain with it.")
        named = "none"
    published, said = choose_split(facts.splits, named, where=facts.name)
    if named is not None and not isinstance(named, str):
        published = _with_images(published, facts)
    folds, reasons = assign_roles(
        read.entries(facts, _labels(facts, overrides), domain=facts.name if several else None),
        replace(overrides, labelled_cases=chosen),
        needs=needs,
        published=published,
        where=facts.name,
        strict=not several,
    )
    reasons["folds"] = said if published else reasons["folds"] + said
    return folds, reasons


def _with_images(folds: Sequence[Split], facts: "Fingerprint") -> tuple[Split, ...]:
    """Return folds, which say of labelled cases only where they belong, with the images without label.

    Raises: PlanError if they name a case that is not there.
    """
    known = {case.id for case in facts.cases}
    for name in (case for fold in folds for ids in fold.values() for case in ids):
        if name not in known:
            raise PlanError(f"{facts.name}: there is no case '{name}'{did_you_mean(name, known)} (--split).")
    images = tuple(case.id for case in facts.cases if not case.is_labelled)
    return tuple({**fold, "unlabelled": images} for fold in folds)


def _labels(facts: "Fingerprint", overrides: Overrides) -> LabelSpace:
    """Return the classes of a dataset, in the groups that the user asks for."""
    if overrides.label_groups is None:
        return facts.labels
    return group_labels(facts.labels, overrides.label_groups, where=facts.name)


def _normalisation(needs: "Needs", facts: "Fingerprint", channel: int) -> tuple[Normalisation, str]:
    modality = facts.modalities[channel]
    if modality == "RGB":
        highest = max((one.max for case in facts.cases for one in case.nonzero), default=255.0)
        high = next((end for end in COLOUR_ENDS if highest <= end), highest)
        return Normalisation(scheme="unit", low=0.0, high=high), f"RGB: 0..{high:g} becomes 0..1"
    scheme, why = choose_normalisation(
        modality,
        foreground=read.foreground(facts, channel),
        masked_background=read.has_masked_background(facts),
    )
    if needs.normalisation == "auto":
        return scheme, why
    if scheme.low is None:
        unit = Normalisation(scheme="unit", percentiles=(0.5, 99.5))
        return unit, "the method wants 0..1: the 0.5 and 99.5 percentiles of each case"
    # Between air and bone soft tissues would have one grey.
    unit = Normalisation(scheme="unit", low=scheme.low, high=scheme.high)
    return unit, f"{why.split(',')[0]}, and mapped to the 0..1 that the method wants"


def _check_channels(fingerprints: Sequence["Fingerprint"]) -> None:
    counts = {each.name: len(each.channels) for each in fingerprints}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name} has {count}" for name, count in counts.items())
        raise PlanError(f"datasets that are learned together need equally many channels; {listed}.")


def _check_novel(facts: Sequence["Fingerprint"], overrides: Overrides) -> None:
    known = sorted({name for each in facts for name in _labels(each, overrides).names})
    for name in overrides.novel:
        if name not in known:
            raise PlanError(
                f"there is no class '{name}'{did_you_mean(name, known)} (--novel); the classes are "
                f"{', '.join(known) or 'none'}."
            )


def _check_cases(facts: Sequence["Fingerprint"], overrides: Overrides) -> None:
    """With several datasets each looks for its own cases and domains; here none may be left over."""
    if len(facts) < 2:
        return
    labelled = {case.id for each in facts for case in each.cases if case.is_labelled}
    domains = {entry.domain for each in facts for entry in read.entries(each, each.labels, domain=each.name)}
    for case in overrides.labelled_cases:
        if case not in labelled:
            raise PlanError(f"there is no labelled case '{case}' in any of the datasets (--labelled-cases).")
    for domain in overrides.domains:
        if domain is not None and domain not in domains:
            listed = ", ".join(sorted(name for name in domains if name is not None))
            raise PlanError(f"there is no domain '{domain}'; the domains are {listed}.")


def _check_roles(method: str, needs: "Needs", planned: Sequence[DatasetPlan]) -> None:
    for role in needs.roles:
        if not any(dataset.folds[0].get(role) for dataset in planned):
            advice = {
                "unlabelled": "Leave cases unlabelled with --labelled 20%, or add images without label.",
                "pretrain": "Name a dataset with --pretrain-on.",
            }.get(role, "Add labels to at least one training case.")
            raise MethodError(f"{method}: needs cases of the role '{role}', and there are none. {advice}")
