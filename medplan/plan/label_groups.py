"""Groupings of raw labels into the classes of a plan: presets, files, and how they are applied."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from medplan.data.labels import LabelSpace
from medplan.errors import PlanError, did_you_mean
from medplan.records import load_json

__all__ = ["PRESETS", "group_labels", "read_label_groups"]

Groups = Mapping[str, tuple[int, ...]]

PRESETS: dict[str, Groups] = {
    # FreeSurfer numbers, in the order of the released list for OASIS.
    "oasis14": {
        "left white matter": (2,),
        "left cortex": (3,),
        "left lateral ventricle": (4,),
        "right white matter": (41,),
        "left thalamus": (10,),
        "right cortex": (42,),
        "right lateral ventricle": (43,),
        "white matter hypointensities": (77,),
        "brain stem": (16,),
        "left hippocampus": (17,),
        "right thalamus": (49,),
        "right hippocampus": (53,),
        "left choroid plexus": (31,),
    },
    # The released list for ABIDE and PPMI; what the numbers mean is documented nowhere.
    "abide_ppmi14": {
        f"label {value}": (value,) for value in (1, 11, 22, 33, 44, 46, 47, 48, 49, 50, 51, 52, 55)
    },
    # Numbers of the MICCAI 2012 multi-atlas challenge (BrainCOLOR); left and right are one class.
    "miccai2012": {
        "cerebral white matter": (44, 45),
        "cortex": (65, 66, *range(100, 208)),
        "lateral ventricles": (49, 50, 51, 52),
        "third and fourth ventricle": (4, 11),
        "thalamus": (59, 60),
        "caudate": (36, 37),
        "putamen": (57, 58),
        "pallidum": (55, 56),
        "hippocampus": (47, 48),
        "amygdala": (31, 32),
        "accumbens": (23, 30),
        "ventral diencephalon": (61, 62),
        "brain stem": (35,),
        "cerebellar white matter": (40, 41),
        "cerebellar cortex": (38, 39, 71, 72, 73),
    },
    # Values as the converters write them, classes as in the experiments on domain adaptation.
    "mmwhs4": {"ascending aorta": (4,), "left atrium": (2,), "left ventricle": (3,), "myocardium": (1,)},
    "grey_matter": {"grey matter": (1,)},
}
"""Raw values by class."""


def read_label_groups(text: str) -> dict[str, tuple[int, ...]]:
    """Return the preset of that name, or what a JSON file holds: ``{"class": [values] or value, ...}``.

    Raises: PlanError if there is no such preset or file, or it holds something else.
    """
    if text in PRESETS:
        return dict(PRESETS[text])
    path = Path(text)
    if path.suffix != ".json":
        raise PlanError(
            f"--label-groups: there is no preset '{text}'{did_you_mean(text, PRESETS)}; there are "
            f"{', '.join(PRESETS)}, or give a .json file."
        )
    data = load_json(path, error=PlanError, hint=" (--label-groups)")
    if not isinstance(data, dict) or not data:
        raise PlanError(f'{path}: expected classes with their raw values, {{"thalamus": [59, 60], ...}}.')
    groups = {}
    for name, values in data.items():
        listed = values if isinstance(values, list) else [values]
        if not listed or not all(type(value) is int for value in listed):
            raise PlanError(f"{path}: '{name}' should be one or several integers, found {values}.")
        groups[str(name)] = tuple(listed)
    return groups


def group_labels(labels: LabelSpace, groups: Groups, *, where: str) -> LabelSpace:
    """Return the classes of a dataset in groups; raw values in none of them become background.

    Values of a group that the dataset does not declare are left out.

    Raises: PlanError if the dataset declares none of the values of a group, or its classes overlap.
    """
    if not labels.is_exclusive:
        raise PlanError(
            f"{where}: its classes overlap (regions), so they cannot be grouped (--label-groups)."
        )
    declared = {value for values in labels.values for value in values}
    kept = {name: tuple(value for value in values if value in declared) for name, values in groups.items()}
    empty = [name for name, values in kept.items() if not values]
    if empty:
        raise PlanError(
            f"{where}: none of the values of '{empty[0]}' {tuple(groups[empty[0]])[:8]} is declared in "
            "dataset.json; choose other --label-groups."
        )
    try:
        return replace(labels, names=tuple(kept), values=tuple(kept.values()), others_are_background=True)
    except ValueError as error:
        raise PlanError(f"--label-groups: {error}.") from None
