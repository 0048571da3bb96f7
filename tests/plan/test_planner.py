from collections.abc import Callable
from dataclasses import replace
from math import prod
from typing import Any

import pytest

from medplan.errors import MethodError, PlanError
from medplan.method import Proposal, Situation
from medplan.methods.supervised import METHOD
from medplan.plan.overrides import Overrides, apply_settings
from medplan.plan.planner import situation
from medplan.plan.schema import Plan
from medplan.records import decode, encode

Make = Callable[..., Any]


def test_equal_facts_give_an_equal_plan(plan: Make, fingerprint: Make) -> None:
    assert plan(fingerprint()) == plan(fingerprint())


def test_a_plan_survives_json(plan: Make, fingerprint: Make) -> None:
    made = plan(fingerprint())
    assert decode(Plan, encode(made), where="x") == made


def test_every_decision_has_its_reason(plan: Make, fingerprint: Make) -> None:
    reasons = plan(fingerprint()).reasons
    for key in (
        "method", "dims", "grid.spacing_mm", "grid.crop", "datasets.0.folds", "datasets.0.normalisations.0",
        "encoder", "pyramid", "patch_size", "training.batch_size", "training.iterations", "training.lr",
        "predicted_gpu_bytes",
    ):  # fmt: skip
        assert reasons[key], key


def test_the_grid_is_isotropic_at_one_and_a_half_mm(plan: Make, fingerprint: Make) -> None:
    assert plan(fingerprint(spacing_mm=(1.0, 0.7, 0.7))).grid.spacing_mm == (1.5, 1.5, 1.5)
    assert plan(fingerprint(spacing_mm=(3.0, 0.7, 0.7))).grid.spacing_mm == (1.5, 1.5, 1.5)


def test_small_images_keep_their_spacing(plan: Make, fingerprint: Make) -> None:
    made = plan(fingerprint(shape=(35, 50, 35)))
    assert made.grid.spacing_mm == (1.0, 1.0, 1.0)
    assert (
        "23 voxels wide along z" in made.reasons["grid.spacing_mm"] or "23" in made.reasons["grid.spacing_mm"]
    )


def test_small_structures_keep_the_spacing(plan: Make, fingerprint: Make) -> None:
    made = plan(fingerprint(class_voxels={"liver": 100_000, "nerve": 60}))
    assert made.grid.spacing_mm == (1.0, 1.0, 1.0)
    assert "'nerve'" in made.reasons["grid.spacing_mm"]


def test_thick_slices_are_not_invented(plan: Make, fingerprint: Make) -> None:
    made = plan(fingerprint(shape=(36, 256, 256), spacing_mm=(7.7, 1.25, 1.25)))
    assert made.grid.spacing_mm == (7.7, 1.5, 1.5)
    assert made.pyramid is not None and made.pyramid.kernels[0] == (1, 3, 3)


def test_axes_are_those_of_the_canonical_orientation(plan: Make, fingerprint: Make) -> None:
    # A sagittal scan: the slow axis runs from left to right.
    made = plan(fingerprint(shape=(36, 200, 160), spacing_mm=(6.0, 1.0, 1.2), orientation="PSR"))
    assert made.grid.spacing_mm == (1.5, 1.5, 6.0)


def test_pictures_have_two_dimensions_and_no_spacing(plan: Make, fingerprint: Make) -> None:
    facts = fingerprint(
        shape=(1, 300, 400), spacing_mm=None, modality="RGB", highest=250.0, channels=("R", "G", "B")
    )
    made = plan(facts)
    assert (made.dims, made.grid.spacing_mm, made.grid.orientation, made.grid.crop) == (2, None, None, "none")
    assert made.patch_size[0] == 1
    assert all(n.scheme == "unit" and n.high == 255 for n in made.datasets[0].normalisations)
    with pytest.raises(PlanError, match="no spacing"):
        plan(facts, spacing=(1.0,))


@pytest.mark.parametrize(("highest", "expected"), [(0.98, 1.0), (250.0, 255.0), (40_000.0, 65535.0)])
@pytest.mark.parametrize("wanted", ["auto", "unit"])
def test_colours_keep_their_contrast_whatever_they_are_stored_as(
    plan: Make, fingerprint: Make, toy: Make, highest: float, expected: float, wanted: str
) -> None:
    facts = fingerprint(shape=(1, 300, 400), spacing_mm=None, modality="RGB", highest=highest)
    (normalisation,) = plan(facts, method=toy(normalisation=wanted)).datasets[0].normalisations
    assert (normalisation.scheme, normalisation.low, normalisation.high) == ("unit", 0.0, expected)


def test_thin_volumes_are_learned_slice_by_slice(plan: Make, fingerprint: Make) -> None:
    assert plan(fingerprint(shape=(5, 200, 200), spacing_mm=(8.0, 1.0, 1.0))).dims == 2
    assert plan(fingerprint(shape=(9, 200, 200), spacing_mm=(8.0, 1.0, 1.0))).dims == 3


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"modality": "CT"}, ("zscore", -50.0, 250.0, 100.0, 20.0, False)),
        ({"modality": "CT", "num_labelled": 1}, ("zscore", -50.0, 250.0, 100.0, 20.0, False)),
        ({"modality": "MR"}, ("zscore", None, None, None, None, False)),
        ({"modality": "MR", "margin": 30}, ("zscore", None, None, None, None, True)),
        ({"modality": "other"}, ("zscore", None, None, None, None, False)),
    ],
)
def test_normalisation_follows_the_modality(plan: Make, fingerprint: Make, facts: Any, expected: Any) -> None:
    n = plan(fingerprint(**facts)).datasets[0].normalisations[0]
    assert (n.scheme, n.low, n.high, n.mean, n.std, n.nonzero_only) == expected


def test_a_method_can_want_unit_intensities(plan: Make, fingerprint: Make, toy: Make) -> None:
    made = plan(fingerprint(modality="CT"), method=toy(normalisation="unit"))
    (window,) = made.datasets[0].normalisations
    assert (window.scheme, window.low, window.high, window.percentiles) == ("unit", -50, 250, None)
    assert "foreground" in made.reasons["datasets.0.normalisations.0"]
    made = plan(fingerprint(), method=toy(normalisation="unit"))
    assert made.datasets[0].normalisations[0].percentiles == (0.5, 99.5)


def test_ct_is_cropped_to_the_body_and_mr_to_what_is_not_zero(plan: Make, fingerprint: Make) -> None:
    assert plan(fingerprint(modality="CT")).grid.crop == "body"
    assert plan(fingerprint(modality="MR")).grid.crop == "nonzero"


@pytest.mark.parametrize(("shape", "memory"), [((30, 200, 200), 1.0), ((160, 200, 180), 6.0)])
def test_a_plan_stays_within_its_memory(plan: Make, fingerprint: Make, shape: Any, memory: float) -> None:
    made = plan(fingerprint(shape=shape), memory=memory, method=METHOD)
    assert made.predicted_gpu_bytes is not None and made.predicted_gpu_bytes <= memory * 2**30
    assert made.training.batch_size >= 2
    assert made.pyramid is not None
    assert all(side % step == 0 for side, step in zip(made.patch_size, made.pyramid.multiple, strict=True))


def test_more_memory_never_gives_a_smaller_patch(plan: Make, fingerprint: Make) -> None:
    sizes = []
    for memory in (0.6, 1.0, 2.0, 8.0):
        z, y, x = plan(fingerprint(shape=(300, 400, 400)), memory=memory).patch_size
        sizes.append(z * y * x)
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]


@pytest.mark.parametrize("memory", [0.55, 0.65])
def test_a_patch_keeps_the_proportions_of_the_image(plan: Make, fingerprint: Make, memory: float) -> None:
    shape = (96, 224, 160)
    patch = plan(fingerprint(shape=shape, spacing_mm=(1.5, 1.5, 1.5)), memory=memory).patch_size
    covered = [side / length for side, length in zip(patch, shape, strict=True)]
    assert max(covered) < 1 and max(covered) < 1.35 * min(covered)


def test_too_little_memory_is_refused(plan: Make, fingerprint: Make) -> None:
    with pytest.raises(PlanError, match="Raise --gpu-memory"):
        plan(fingerprint(), memory=0.4)


def test_a_large_gpu_is_not_filled_unless_asked(plan: Make, fingerprint: Make) -> None:
    usual, large = (plan(fingerprint(), memory=gigabytes) for gigabytes in (24, 139))
    assert large.patch_size == usual.patch_size
    assert "24 GB of 139 GB" in large.reasons["predicted_gpu_bytes"]
    asked = plan(fingerprint(), memory=24, gpu_memory=139.0)
    assert prod(asked.patch_size) >= prod(usual.patch_size)


def test_a_batch_is_no_more_than_a_twentieth_of_the_data(plan: Make, fingerprint: Make) -> None:
    many = plan(fingerprint(shape=(40, 40, 40), spacing_mm=(1.5, 1.5, 1.5), num_labelled=200))
    assert many.training.batch_size == 10
    few = plan(fingerprint(shape=(40, 40, 40), spacing_mm=(1.5, 1.5, 1.5), num_labelled=5))
    assert few.training.batch_size == 2


def test_a_reason_of_the_method_gives_way_to_the_user(plan: Make, fingerprint: Make, toy: Make) -> None:
    class Proposing(toy()):  # type: ignore[misc]
        @classmethod
        def propose(cls, situation: Situation) -> Proposal:
            reasons = {"batch_size": "one pair", "lr": "as published"}
            return Proposal(fits=True, score=50, reason="a toy", batch_size=1, lr=0.1, reasons=reasons)

    made = plan(fingerprint(), method=Proposing, batch_size=3)
    assert made.reasons["training.lr"] == "as published"
    assert "one pair" not in made.reasons.values() and not {"batch_size", "lr"} & made.reasons.keys()


def test_overrides_beat_every_rule_and_are_the_reason(plan: Make, fingerprint: Make) -> None:
    made = plan(
        fingerprint(),
        name="Mine", spacing=(2.0,), patch_size=(32, 48, 64), batch_size=3, iterations=77, lr=0.5, seed=9,
        settings={"config.momentum": 0.5, "grid.crop": "none", "training.validate_every": 11},
    )  # fmt: skip
    assert made.name == "Mine"
    assert made.grid.spacing_mm == (2.0, 2.0, 2.0)
    assert made.grid.crop == "none"
    assert made.patch_size == (32, 48, 64)
    assert (made.training.batch_size, made.training.iterations, made.training.lr, made.training.seed) == (
        3,
        77,
        0.5,
        9,
    )
    assert made.training.validate_every == 11
    assert made.config["momentum"] == 0.5
    for key in ("grid.spacing_mm", "grid.crop", "patch_size", "training.batch_size", "training.iterations"):
        assert "set by the user" in made.reasons[key], key


def test_slices_can_be_asked_for(plan: Make, fingerprint: Make) -> None:
    made = plan(fingerprint(), dims=2, patch_size=(96, 64))
    assert made.dims == 2
    assert made.patch_size == (1, 96, 64)
    assert plan(fingerprint(), settings={"dims": 2, "patch_size": (1, 96, 64)}).patch_size == (1, 96, 64)


@pytest.mark.parametrize("wish", [{"patch_size": (30, 30, 30)}, {"settings": {"patch_size": [30, 30, 30]}}])
def test_a_patch_that_cannot_be_halved_is_rounded_up_and_says_so(
    plan: Make, fingerprint: Make, wish: Any
) -> None:
    made = plan(fingerprint(), **wish)
    assert made.patch_size == (32, 32, 32)
    assert "rounded up" in made.reasons["patch_size"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"encoder": "unnet"}, "did you mean 'unet'"),
        ({"spacing": (1.0, 2.0)}, "--spacing"),
        ({"settings": {"grid.spacing_mm": "fine"}}, "--spacing"),
        ({"patch_size": (1, 2, 3, 4)}, "--patch-size"),
        ({"patch_size": (64, 64)}, r"should be three integers .*found \(64, 64\)"),
        ({"settings": {"training.ler": 1}}, "did you mean 'training.lr'"),
        ({"settings": {"config.momentun": 1}}, "did you mean 'momentum'"),
        ({"iterations": -1}, "'iterations' should be at least 0"),
        ({"gpu_memory": -1}, "--gpu-memory"),
        ({"dims": 4}, "not in 4"),
    ],
)
def test_wrong_overrides_are_refused(plan: Make, fingerprint: Make, overrides: Any, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        plan(fingerprint(), **overrides)


def test_a_plan_edited_to_a_patch_that_cannot_be_halved_is_refused(plan: Make, fingerprint: Make) -> None:
    made = plan(fingerprint(), patch_size=(32, 32, 32))
    with pytest.raises(PlanError, match=r"multiple of \(8, 8, 8\).*found \(30, 32, 32\)"):
        apply_settings(made, {"patch_size": [30, 32, 32]})


def test_pictures_are_not_learned_as_volumes(plan: Make, fingerprint: Make) -> None:
    with pytest.raises(PlanError, match=r"--dims 3: .* pictures"):
        plan(fingerprint(spacing_mm=None, shape=(1, 200, 200)), dims=3)


def test_squeezed_slices_keep_their_number(plan: Make, fingerprint: Make, toy: Make) -> None:
    method = toy(grid="squeezed", patch_multiple=16, dims=(2,))
    assert plan(fingerprint(), method=method).grid.shape == (0, 128, 128)
    given = plan(fingerprint(), method=method, settings={"grid.shape": [0, 64, 96]})
    assert (given.grid.shape, given.patch_size) == ((0, 64, 96), (1, 64, 96))


def test_the_situation_counts_what_overrides_leave(fingerprint: Make) -> None:
    facts = fingerprint(num_labelled=10, num_unlabelled=5, domains=("A", "B"), absent_classes=("rare",))
    everything = situation([facts])
    assert (everything.num_labelled, everything.num_unlabelled, everything.num_classes) == (10, 5, 3)
    assert everything.domains == ("A", "B")
    assert everything.has_novel_classes
    assert everything.encoder is None and situation([facts], Overrides(encoder="unet")).encoder == "unet"
    few = situation([facts], Overrides(labelled="1"))
    assert (few.num_labelled, few.num_unlabelled) == (1, 12)


def test_roles_that_are_missing_are_named_with_advice(plan: Make, fingerprint: Make, toy: Make) -> None:
    with pytest.raises(MethodError, match=r"'unlabelled'.*--labelled 20%"):
        plan(fingerprint(), method=toy(roles=("labelled", "unlabelled")))


def test_an_atlas_method_gets_one_atlas_on_a_squeezed_grid(plan: Make, fingerprint: Make, toy: Make) -> None:
    method = toy(roles=("atlas", "unlabelled"), grid="squeezed", patch_multiple=16)
    made = plan(fingerprint(num_labelled=10, num_unlabelled=3), method=method)
    assert made.grid.shape == made.patch_size == (128, 128, 128)
    assert made.grid.spacing_mm is None
    roles = made.roles(0)
    assert len(roles["atlas"]) == 1
    assert 1 <= len(roles["validation"]) <= 2
    assert "labelled" not in roles
    assert "datasets.0.folds.atlas" in made.reasons


def test_several_datasets_share_a_grid_and_the_samples(plan: Make, fingerprint: Make, toy: Make) -> None:
    facts = [fingerprint("A", num_labelled=4), fingerprint("B", num_labelled=64, modality="CT")]
    with pytest.raises(MethodError, match="one dataset at a time"):
        plan(*facts, method=toy())
    made = plan(*facts, method=toy(several_datasets=True))
    assert made.name == "A_B"
    assert made.datasets[1].share == pytest.approx(4 * made.datasets[0].share, rel=1e-3)
    assert sum(dataset.share for dataset in made.datasets) == pytest.approx(1)
    across = plan(*facts, method=toy(several_datasets=True), source_domain="A", target_domain="B")
    assert "labelled" not in across.datasets[1].folds[0]
    assert len(across.datasets[1].folds[0]["unlabelled"]) == 64


def test_all_cases_are_learned_from_where_none_is_kept_for_validation(
    plan: Make, fingerprint: Make, toy: Make
) -> None:
    facts = fingerprint()
    everyone = {f"Phantom/{case.id}" for case in facts.cases}
    assert set(plan(facts).roles("all")["labelled"]) == everyone
    of_one = plan(facts, method=toy(roles=("atlas", "unlabelled"))).roles("all")
    assert {*of_one["atlas"], *of_one["unlabelled"]} == everyone and of_one.keys() == {"atlas", "unlabelled"}


def test_datasets_to_pretrain_on_give_images_only(plan: Make, fingerprint: Make, toy: Make) -> None:
    made = plan(
        fingerprint("A"), fingerprint("B"), method=toy(roles=("labelled", "pretrain")), pretrain_on=("B",)
    )
    assert made.name == "A"
    assert made.datasets[1].folds == ({"pretrain": tuple(f"case{n:03d}" for n in range(10))},)


def test_channels_of_joined_datasets_should_match(plan: Make, fingerprint: Make, toy: Make) -> None:
    with pytest.raises(PlanError, match="A has 1, B has 2"):
        plan(fingerprint("A"), fingerprint("B", channels=("T1", "T2")), method=toy(several_datasets=True))


def test_novel_classes_are_named_in_the_plan_and_an_unknown_one_is_refused(
    plan: Make, fingerprint: Make, toy: Make
) -> None:
    shown = toy(new_classes=True)
    with pytest.raises(MethodError, match="cannot be shown tumour later"):
        plan(fingerprint(), method=toy(), novel=("tumour",))
    made = plan(fingerprint(), method=shown, novel=("tumour",))
    assert made.datasets[0].novel == ("tumour",)
    assert made.reasons["datasets.0.novel"] == "kept out of learning by the user (--novel)"
    assert situation([fingerprint()], Overrides(novel=("tumour",))).has_novel_classes
    with pytest.raises(PlanError, match=r"no class 'tumor' \(did you mean 'tumour'\?\)"):
        plan(fingerprint(), method=shown, novel=("tumor",))


def test_datasets_to_pretrain_on_may_have_other_channels_and_serve_every_fold(
    plan: Make, fingerprint: Make, toy: Make
) -> None:
    pictures = fingerprint("B", channels=("R", "G", "B"))
    made = plan(fingerprint("A"), pictures, method=toy(), pretrain_on=("B",))
    assert [dataset.name for dataset in made.learned] == ["A"] and made.num_channels == 1
    assert made.roles(4)["pretrain"] == made.roles(0)["pretrain"] == made.roles("all")["pretrain"]
    with pytest.raises(PlanError, match="equally many channels"):
        plan(fingerprint("A"), pictures, method=toy(several_datasets=True))


def test_slices_along_several_axes_keep_theirs(plan: Make, fingerprint: Make) -> None:
    facts = fingerprint(shape=(12, 200, 220), spacing_mm=(8.0, 1.5, 1.5), orientation="PSR")
    turned = replace(facts.cases[0], orientation="LSP")
    made = plan(replace(facts, cases=(turned, *facts.cases[1:])))
    assert made.grid.orientation is None
    assert made.grid.spacing_mm == (8.0, 1.5, 1.5)
    assert made.patch_size[0] <= 12 < made.patch_size[1]
    assert made.mirror_axes(made.datasets[0]) == (0, 1, 2)


def test_hearts_lie_alike_in_every_plan(plan: Make, fingerprint: Make, toy: Make) -> None:
    shape, spacing = (12, 200, 220), (8.0, 1.5, 1.5)
    stored = fingerprint("Heart", shape=shape, spacing_mm=spacing, orientation="PSR")
    heart = replace(stored, cases=tuple(replace(case, is_oblique=True) for case in stored.cases))
    alone, together = plan(heart), plan(heart, fingerprint("Brain"), method=toy(several_datasets=True))
    for made in (alone, together):
        assert made.grid.orientation == "RAS" and made.grid.keeps_oblique
        assert "10 cases of oblique thick slices" in made.reasons["grid.orientation"]
    assert alone.grid.spacing_mm == spacing


def test_a_plan_like_another_has_its_grid_and_patch_unless_chosen(
    plan: Make, fingerprint: Make, toy: Make
) -> None:
    first = plan(fingerprint(modality="CT"), spacing=(4.0,), patch_size=(16, 32, 32), batch_size=3)
    first = replace(first, grid=replace(first.grid, keeps_oblique=False))
    facts = fingerprint("Other", spacing_mm=(1.0, 1.0, 8.0), orientation="PSR")
    made = plan(facts, like=first)
    assert (made.grid, made.patch_size) == (first.grid, (16, 32, 32)) and made.grid.crop == "body"
    assert made.training.batch_size == 3 and made.encoder == first.encoder
    assert "starts from" in made.reasons["grid.spacing_mm"] and "starts from" in made.reasons["patch_size"]
    chosen = plan(facts, like=first, spacing=(2.0,))
    assert chosen.grid == replace(first.grid, spacing_mm=(2.0, 2.0, 2.0))
    with pytest.raises(PlanError, match="trained with hermes"):
        plan(facts, like=replace(first, method="hermes"))
