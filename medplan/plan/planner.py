"""From facts to decisions: fingerprints, what a method needs, and the user's overrides become a plan.

Everything here is a pure function: nothing is read or written, equal input gives an equal plan. Every
decision leaves one line in `Plan.reasons`; a choice of the user beats every rule and is named as the reason.
"""

from collections.abc import Sequence
from dataclasses import fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from medplan.errors import MethodError, PlanError, did_you_mean
from medplan.plan import summary as read
from medplan.plan.alignment import choose_alignment
from medplan.plan.capacity import fill_memory, memory_target
from medplan.plan.dataset_plans import fold_roles, plan_datasets
from medplan.plan.grids import choose_crop, choose_dims, choose_orientation, choose_spacing
from medplan.plan.lighten import fill_or_lighten, squeezed_further
from medplan.plan.overrides import Overrides, apply_settings, voxels_of
from medplan.plan.schema import Grid, Plan, Training
from medplan.plan.topology import round_up
from medplan.records import decode, encode

if TYPE_CHECKING:
    from medplan.method import Method, Needs, Proposal, Situation
    from medplan.plan.fingerprint import Fingerprint
    from medplan.plan.memory import Footprint

__all__ = ["decide", "situation"]

SQUEEZED_SIDE = 128

Voxels = tuple[int, int, int]


def situation(fingerprints: Sequence["Fingerprint"], overrides: Overrides | None = None) -> "Situation":
    """Sum up what decides which method fits, as the overrides would leave it.

    Args:
        fingerprints: of the datasets; those named by `Overrides.pretrain_on` do not count.
        overrides: restrictions of labels and domains change the counts.
    """
    from medplan.method import Situation

    overrides = overrides or Overrides()
    facts = [each for each in fingerprints if each.name not in overrides.pretrain_on]
    counts = {"labelled": 0, "unlabelled": 0}
    for each in facts:
        folds, _ = fold_roles(each, overrides, needs=("labelled",), several=len(facts) > 1)
        counts["labelled"] += len(folds[0].get("labelled", ()))
        if overrides.labelled is None and not overrides.labelled_cases:
            counts["labelled"] += len(folds[0].get("validation", ()))
        counts["unlabelled"] += len(folds[0].get("unlabelled", ()))
    return Situation(
        num_datasets=len(facts),
        num_labelled=counts["labelled"],
        num_unlabelled=counts["unlabelled"],
        num_classes=len({name for each in facts for name in each.labels.names}),
        domains=tuple(
            sorted({case.domain for each in facts for case in each.cases if case.domain is not None})
        ),
        modalities=tuple(sorted({modality for each in facts for modality in each.modalities})),
        is_picture=read.is_picture(facts),
        spacing_mm=read.median_spacing_mm(facts),
        median_shape=read.median_shape(read.grid_shapes(facts, Grid(spacing_mm=None, crop="none"))),
        has_novel_classes=bool(overrides.novel or read.novel_classes(facts)),
        encoder=(overrides.value("encoder", "encoder") or (None,))[0],
        encoder_weights=_weights(overrides),
        without_weights=overrides.value("encoder_weights", "encoder_weights") is not None
        and _weights(overrides) is None,
        like=overrides.like,
        datasets=tuple(each.name for each in facts),
    )


def decide(
    fingerprints: Sequence["Fingerprint"],
    method: str,
    method_class: "type[Method]",
    overrides: Overrides,
    gpu_memory_bytes: int | None = None,
) -> tuple[Plan, "Footprint"]:
    """Decide everything for one method on one or several datasets.

    Args:
        fingerprints: of the datasets, and of those named by `Overrides.pretrain_on`.
        method: name of the method.
        method_class: gives `Needs`, `Config` and `propose`, and is built on ``meta`` to measure its memory.
        gpu_memory_bytes: what the GPU has, None without one. A training step may take as much, but no more
            than 24 GB, as large as nnU-Net's recommended plans; `Overrides.gpu_memory` beats both.

    Returns: the plan, and what a training step takes.
    Raises: MethodError if the method does not fit the data; PlanError if an override does not.
    """
    from medplan.plan.memory import measure

    needs = method_class.needs
    facts = [each for each in fingerprints if each.name not in overrides.pretrain_on]
    if len(facts) > 1 and not needs.several_datasets:
        names = ", ".join(each.name for each in facts)
        raise MethodError(f"{method}: learns one dataset at a time, and was given {len(facts)} ({names}).")
    if overrides.like is not None and overrides.like.method != method:
        raise PlanError(f"--from: that run was trained with {overrides.like.method}, not with {method}.")
    if overrides.novel and not needs.new_classes:
        raise MethodError(
            f"{method}: learns every class of a dataset, and cannot be shown {', '.join(overrides.novel)} "
            "later (--novel)."
        )
    memory, source = memory_target(overrides, gpu_memory_bytes)
    proposal = method_class.propose(replace(situation(fingerprints, overrides), memory_bytes=memory))
    if not proposal.fits:
        raise MethodError(f"{method}: {proposal.reason}.")
    # Those of the training's numbers are given under their keys of the plan.
    of_training = {each.name for each in fields(Training)}
    proposed = {key: why for key, why in proposal.reasons.items() if key not in of_training}
    reasons = {"method": proposal.reason, **proposed}
    dims = _dims(method, needs, proposal, facts, overrides, reasons)
    grid = _grid(needs, proposal, facts, dims, overrides, reasons)
    encoder = _encoder(method, needs, proposal, overrides, reasons)
    datasets = plan_datasets(method, needs, fingerprints, overrides, reasons, extra=proposal.extra)
    align_to, reasons["grid.align_to"] = choose_alignment(needs, facts, datasets, overrides)
    draft = Plan(
        name=overrides.name or "_".join(each.name for each in facts),
        method=method,
        score=proposal.score,
        dims=dims,
        datasets=datasets,
        grid=replace(grid, align_to=align_to),
        patch_size=(1, 1, 1),
        encoder=encoder,
        encoder_weights=_weights(overrides, proposal.encoder_weights.get(encoder)),
        training=_training(proposal, overrides, reasons),
        config=_config(method, method_class, proposal, overrides),
        reasons=reasons,
    )
    # The patch is set with the pyramid that fits it, and the pyramid is changed after that.
    early = {
        key: value for key, value in overrides.settings.items() if not key.startswith(("patch", "pyramid"))
    }
    late = {key: value for key, value in overrides.settings.items() if key != "patch_size"}
    draft = method_class.settle(apply_settings(draft, early, method_class.Config))
    measured = partial(measure, method_class)

    def filled(each: Plan) -> "tuple[Plan, Footprint]":
        return fill_memory(
            each, needs, proposal, facts, overrides, measured, target_bytes=memory, source=source
        )

    plan, footprint = fill_or_lighten(filled, draft, method_class.lighter(draft), target_bytes=memory)
    is_free = not (
        proposal.patch_size or overrides.value("grid.shape") or overrides.value("patch_size", "patch_size")
    )
    while is_free and footprint.total > memory:
        smaller = squeezed_further(
            draft,
            share=memory / footprint.total,
            multiple=needs.patch_multiple,
            why=f"{'x'.join(map(str, plan.patch_size))} would take {footprint.total / 2**30:.1f} GB",
        )
        if smaller is None:
            break
        draft = smaller
        plan, footprint = fill_or_lighten(filled, draft, method_class.lighter(draft), target_bytes=memory)
    finished = method_class.settle(apply_settings(plan, late, method_class.Config))
    if replace(finished, reasons={}) != replace(plan, reasons={}):
        footprint = measure(method_class, finished)
    return replace(finished, predicted_gpu_bytes=footprint.total), footprint


def _dims(
    method: str,
    needs: "Needs",
    proposal: "Proposal",
    facts: Sequence["Fingerprint"],
    overrides: Overrides,
    reasons: dict[str, str],
) -> Literal[2, 3]:
    chosen = overrides.value("dims", "dims")
    if chosen is not None:
        wanted, reasons["dims"] = chosen
        dims = next((possible for possible in needs.dims if possible == wanted), None)
        if dims is None:
            known = " and ".join(map(str, needs.dims))
            raise PlanError(f"{method}: works in {known} dimensions, not in {wanted}.")
        if dims == 3 and read.is_picture(facts):
            raise PlanError(f"--dims 3: the cases of '{facts[0].name}' are pictures, which have two.")
        return dims
    if proposal.dims is not None:
        reasons.setdefault("dims", "proposed by the method")
        return proposal.dims
    shape = read.median_shape(read.grid_shapes(facts, Grid(spacing_mm=None, crop="none")))
    found, reasons["dims"] = choose_dims(needs.dims, is_picture=read.is_picture(facts), median_shape=shape)
    if found is None:
        raise MethodError(f"{method}: works on volumes, and the cases of '{facts[0].name}' are pictures.")
    return found


def _grid(
    needs: "Needs",
    proposal: "Proposal",
    facts: Sequence["Fingerprint"],
    dims: Literal[2, 3],
    overrides: Overrides,
    reasons: dict[str, str],
) -> Grid:
    is_picture = read.is_picture(facts)
    modalities = [modality for each in facts for modality in each.modalities]
    crop, reasons["grid.crop"] = overrides.value("grid.crop") or choose_crop(
        modalities, is_picture=is_picture
    )
    orientation, reasons["grid.orientation"] = overrides.value("grid.orientation") or choose_orientation(
        read.slice_axes(facts), dims=dims, is_picture=is_picture, needs_canonical=needs.aligned
    )
    keeps_oblique, _ = overrides.value("grid.keeps_oblique") or (orientation is not None, "")
    if keeps_oblique and (oblique := sum(case.is_oblique for each in facts for case in each.cases)):
        reasons["grid.orientation"] += f"; {oblique} cases of oblique thick slices stay as stored"
    facts = facts if orientation is not None else read.as_stored(facts)
    grid = Grid(spacing_mm=None, orientation=orientation, crop=crop, keeps_oblique=keeps_oblique)
    spacing = overrides.value("grid.spacing_mm", "spacing")
    if spacing is not None and spacing[0] is not None:
        if is_picture:
            raise PlanError("--spacing: pictures have no spacing; leave it out.")
        values = spacing[0] if isinstance(spacing[0], (list, tuple)) else (spacing[0],)
        values = tuple(values) * 3 if len(values) == 1 else tuple(values)
        if len(values) != 3 or not all(isinstance(step, (int, float)) and step > 0 for step in values):
            raise PlanError(f"--spacing: should be one positive number or three (z y x), found {spacing[0]}.")
        reasons["grid.spacing_mm"] = spacing[1]
        return replace(grid, spacing_mm=(float(values[0]), float(values[1]), float(values[2])))
    if needs.grid == "squeezed":
        shape, reasons["grid.shape"] = _squeezed(needs, proposal, facts, dims, overrides)
        return replace(grid, shape=shape)
    if needs.grid == "native":
        reasons["grid.spacing_mm"] = "the method keeps each case's own grid"
        return grid
    if proposal.spacing_mm is not None and read.median_spacing_mm(facts) is not None:
        reasons.setdefault("grid.spacing_mm", "proposed by the method")
        return replace(grid, spacing_mm=proposal.spacing_mm)
    chosen, reasons["grid.spacing_mm"] = choose_spacing(
        read.median_spacing_mm(facts), read.median_extent_mm(facts, crop), read.class_diameters_mm(facts)
    )
    return replace(grid, spacing_mm=chosen)


def _squeezed(
    needs: "Needs",
    proposal: "Proposal",
    facts: Sequence["Fingerprint"],
    dims: Literal[2, 3],
    overrides: Overrides,
) -> tuple[Voxels, str]:
    chosen = overrides.value("grid.shape")
    if chosen is not None and chosen[0] is not None:
        return voxels_of(chosen[0], dims=dims, key="grid.shape", least=0), chosen[1]
    keeps_slices = dims == 2 and not read.is_picture(facts)
    chosen = overrides.value("patch_size", "patch_size")
    if chosen is None or chosen[0] is None:
        chosen = proposal.patch_size, proposal.reasons.get("patch_size", "proposed by the method")
    if chosen[0] is not None:
        shape, reason = voxels_of(chosen[0], dims=dims), chosen[1]
        if keeps_slices:
            return (0, *shape[1:]), f"{reason}; slices stay as they are"
        return shape, reason
    median = read.median_shape(read.grid_shapes(facts, Grid(spacing_mm=None, crop="none")))
    multiple = max(needs.patch_multiple, 1)
    largest = (1 if dims == 2 else SQUEEZED_SIDE, SQUEEZED_SIDE, SQUEEZED_SIDE)
    shape = round_up(
        (min(median[0], largest[0]), min(median[1], largest[1]), min(median[2], largest[2])),
        (1 if dims == 2 else multiple, multiple, multiple),
    )
    return (
        (0, *shape[1:]) if keeps_slices else shape,
        f"median shape {median}, at most {SQUEEZED_SIDE} per side, rounded up to multiples of {multiple}",
    )


def _encoder(
    method: str, needs: "Needs", proposal: "Proposal", overrides: Overrides, reasons: dict[str, str]
) -> str:
    chosen = overrides.value("encoder", "encoder")
    name, reasons["encoder"] = chosen or (
        proposal.encoder or needs.encoders[0],
        proposal.reasons.get("encoder", f"the first choice of {method}"),
    )
    if name not in needs.encoders:
        known = ", ".join(needs.encoders)
        raise PlanError(
            f"{method}: takes no encoder '{name}'{did_you_mean(name, needs.encoders)}; it takes {known}."
        )
    return str(name)


def _weights(overrides: Overrides, proposed: str | None = None) -> str | None:
    value = overrides.value("encoder_weights", "encoder_weights")
    if value is None:
        return proposed
    return None if str(value[0]).lower() == "none" else str(value[0])


def _training(proposal: "Proposal", overrides: Overrides, reasons: dict[str, str]) -> Training:
    def number(key: str, default: Any) -> Any:
        chosen = overrides.value(f"training.{key}", key if hasattr(overrides, key) else None)
        value, reasons[f"training.{key}"] = chosen or (
            default,
            proposal.reasons.get(key, proposal.reasons.get(f"training.{key}", "default of the method")),
        )
        return value

    reasons["training.validate_every"] = "every 1000 steps, but at least five times"
    training = decode(
        Training,
        {
            "iterations": number("iterations", proposal.iterations),
            "batch_size": overrides.batch_size or proposal.batch_size or 2,
            "lr": number("lr", proposal.lr),
            "weight_decay": number("weight_decay", proposal.weight_decay),
            "seed": number("seed", 0),
        },
        where="training",
    )
    return training.of_length(training.iterations)


def _config(
    method: str, method_class: "type[Method]", proposal: "Proposal", overrides: Overrides
) -> dict[str, Any]:
    changed = {key[7:]: value for key, value in overrides.settings.items() if key.startswith("config.")}
    plain = {key: value for key, value in changed.items() if "." not in key}
    config: Any = decode(method_class.Config, {**encode(proposal.config), **plain}, where=f"{method} config")
    return dict(encode(config))
