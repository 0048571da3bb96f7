"""The laws of joint registration and segmentation, beyond those that hold for every method."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from medplan.checkpoint import unwrapped
from medplan.data.labels import LabelSpace
from medplan.errors import CheckpointError, MethodError
from medplan.learning.registration import local_correlation
from medplan.method import Phase, Progress, Situation
from medplan.methods.bijros import BiJROS
from medplan.networks.bilevel import hypergradient_factor
from medplan.networks.joint import UNetEncoder, load_published_encoder
from medplan.networks.sam import SAM_VARIANTS, SamVariant
from medplan.plan.memory import measure
from medplan.records import encode
from medplan.runtime import Runtime
from medplan.train.update import GradientUpdate
from tests.conftest import make_phantom
from tests.methods.bijros_case import FixedNorm, Recorder, tiny_bijros

AT = Progress(phase="bilevel", step=0, num_steps=1)
SIDE = 16


def pair(size: int = 1, *, side: int = SIDE) -> dict[str, Any]:
    phantoms = [make_phantom(seed, shape=(side,) * 3, spacing_mm=(1.0, 1.0, 1.0)) for seed in range(2 * size)]
    images = torch.from_numpy(np.stack([p.image for p in phantoms]))[:, None] / 6
    label = torch.from_numpy(np.stack([p.label for p in phantoms[:size]])).short()
    return {"image": images[:size], "unlabelled_image": images[size:], "label": label, "case": ["a b"] * size}


def turned(batch: dict[str, Any]) -> dict[str, Any]:
    return batch | {f"turned_{key}": value for key, value in batch.items() if key != "case"}


def stepping(method: BiJROS, phase: str = "bilevel", **rates: float) -> GradientUpdate:
    optimizers = method.optimizers(phase)
    trained = {id(p) for o in optimizers.values() for g in o.param_groups for p in g["params"]}
    for parameter in method.parameters():
        parameter.requires_grad_(id(parameter) in trained)
    method.train()
    stage = Phase(name=phase, num_steps=10, batch_size=1, sample=None)  # type: ignore[arg-type]
    return GradientUpdate(optimizers, phase=stage, runtime=Runtime(device=torch.device("cpu")))


def state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("mode", ["bilevel", "alternating"])
def test_the_frozen_encoder_does_not_move_by_a_bit_statistics_included(mode: str) -> None:
    method = tiny_bijros(mode=mode)
    update, before = stepping(method), state(method.network.encoder)
    for _ in range(2):
        update.begin(AT, [])
        method.training_step(pair(), update, AT)
    assert same(before, state(method.network.encoder))
    assert not any(p.requires_grad or p.grad is not None for p in method.network.encoder.parameters())


def test_gradient_flows_through_the_frozen_encoder_unless_it_is_detached() -> None:
    gradients = {}
    for detached in (False, True):
        method = tiny_bijros(detach_pseudo=detached, blend=(0.6, 0.6))
        FixedNorm.apply(method)
        update = Recorder(method.optimizers("bilevel"), steps=())
        torch.nn.init.normal_(method.network.registration.head.weight, std=0.1)
        method.training_step(pair(), update, AT)
        gradients[detached] = torch.cat([g.flatten() for g in update.seen["reg"]])
    assert not torch.allclose(gradients[False], gradients[True], rtol=1e-6, atol=0)


@pytest.mark.parametrize("shared", [True, False])
def test_the_lower_step_moves_segmentation_only_and_the_upper_step_registration_only(shared: bool) -> None:
    method = tiny_bijros(shared_passes=shared)
    for moved, still in (("seg", "registration"), ("reg", "segmentation")):
        before = {name: p.clone() for name, p in getattr(method.network, still).named_parameters()}
        update = Recorder(method.optimizers("bilevel"), steps=(moved,))
        method.training_step(turned(pair()), update, AT)
        after = dict(getattr(method.network, still).named_parameters())
        assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_cut_graph_gives_the_gradient_of_the_whole_graph() -> None:
    method = tiny_bijros(blend=(0.7, 0.7))
    FixedNorm.apply(method)
    method.double()
    torch.nn.init.normal_(method.network.registration.head.weight, std=0.1)
    batch = {k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v for k, v in pair().items()}
    update = Recorder(method.optimizers("bilevel"), steps=())
    logged = method.training_step(batch, update, AT)
    pairing, network = method.pairing, method.network
    theta, omega = list(network.segmentation.parameters()), list(network.registration.parameters())
    both = pairing.register(batch)
    pseudo = pairing.pseudo_image(both, torch.full((1, 1, 1, 1, 1), 0.7))
    terms = pairing.both_ways(both)
    from medplan.learning.registration import agreement
    from medplan.networks.warp import warp

    upper = terms["similarity"] + terms["smooth"] + 10 * terms["cycle"] + pairing.consistency(both)
    answer = pairing.probabilities(network.encode(pseudo), both.size)
    lower = agreement(answer, warp(both.members, both.to_image))
    g_r = torch.autograd.grad(upper, theta, retain_graph=True)
    g_s = torch.autograd.grad(lower, theta, retain_graph=True)
    factor = hypergradient_factor(g_r, g_s, limit=10)
    assert torch.allclose(factor, logged["factor"])
    expected = torch.autograd.grad(upper + factor * lower, omega)
    for one, other in zip(expected, update.seen["reg"], strict=True):
        assert torch.allclose(one, other, atol=1e-10)
    alone = torch.autograd.grad(pairing.both_ways(pairing.register(batch))["similarity"], omega)
    assert not torch.allclose(alone[-2], update.seen["reg"][-2])


def test_the_factor_is_the_implicit_gradient_where_the_lower_problem_is_a_line() -> None:
    """Phi_s = 1/2 (theta - a(omega))^2: theta*(omega) = a(omega), whose gradient is exact."""
    omega, theta = torch.tensor(0.7, requires_grad=True), torch.tensor(1.9, requires_grad=True)

    def upper(omega: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
        return (theta * omega).sin() + theta**3

    lower = 0.5 * (theta - omega.exp()) ** 2
    (g_r,) = torch.autograd.grad(upper(omega, theta), theta, retain_graph=True)
    (g_s,) = torch.autograd.grad(lower, theta, retain_graph=True)
    factor = hypergradient_factor([g_r], [g_s], limit=1e6)
    (found,) = torch.autograd.grad(upper(omega, theta) + factor * lower, omega)
    # d upper / d omega + d upper / d theta * d theta* / d omega, at the same theta.
    (direct,) = torch.autograd.grad(upper(omega, theta), omega)
    assert torch.allclose(found, direct + g_r * omega.exp(), rtol=1e-5)


def test_a_flat_lower_objective_gives_no_factor_and_large_ones_are_limited() -> None:
    nothing, something = [torch.zeros(3)], [torch.ones(3)]
    assert hypergradient_factor(something, nothing, limit=10) == 0
    assert hypergradient_factor([1000 * something[0]], something, limit=10) == -10


def test_the_pseudo_image_is_the_image_where_blend_is_one_or_nothing_moves() -> None:
    method = tiny_bijros()
    batch = pair()
    with torch.no_grad():
        still = method.pairing.register(batch)
        assert torch.allclose(
            method.pairing.pseudo_image(still, torch.full((1, 1, 1, 1, 1), 0.3)), still.image, atol=1e-3
        )
        torch.nn.init.normal_(method.network.registration.head.weight, std=0.3)
        moving = method.pairing.register(batch)
        image = lambda blend: method.pairing.pseudo_image(moving, torch.full((1, 1, 1, 1, 1), blend))  # noqa: E731
        assert torch.allclose(image(1.0), moving.image, atol=1e-6)
        assert torch.allclose(image(0.5), (image(0.0) + moving.image) / 2, atol=1e-6)
        assert not torch.allclose(image(0.0), moving.image, atol=1e-2)


def test_memberships_sum_to_one_and_voxels_without_annotation_belong_to_nothing() -> None:
    method = tiny_bijros(num_classes=2)
    codes = torch.tensor([0, 1, 2, -1]).view(1, 1, 2, 2).short()
    assert method.pairing.members(codes).sum(1).flatten().tolist() == [1, 1, 1, 0]


def test_voxels_of_the_atlas_without_annotation_teach_nothing() -> None:
    labels = LabelSpace(names=("a", "b"), values=((1,), (2,)), ignore=9)
    answer = torch.rand(1, 3, SIDE, SIDE, SIDE, requires_grad=True)
    pairing = tiny_bijros(labels=labels).pairing
    codes = pair()["label"]
    codes[..., :8] = -1
    loss = pairing.agree(pairing.members(codes), answer)
    (gradient,) = torch.autograd.grad(loss, answer)
    assert not gradient[..., :8].any() and gradient[..., 8:].all()


def test_an_untrained_network_moves_nothing_and_an_equal_pair_stays_in_place() -> None:
    method = tiny_bijros(encoder_share=0.0)
    batch = pair()
    batch["unlabelled_image"] = batch["image"].clone()
    with torch.no_grad():
        assert method.pairing.register(batch).to_image.abs().max() < 1e-3
    update = stepping(method)
    for step in range(8):
        at = Progress(phase="bilevel", step=step, num_steps=10)
        update.begin(at, [])
        logged = method.training_step(batch, update, at)
    with torch.no_grad():
        after = method.pairing.register(batch)
    assert after.to_image.abs().mean() < 0.1 and logged["cycle"] < 0.05
    assert local_correlation(after.image, after.atlas, window=5) < -0.9


def test_batches_of_two_an_atlas_without_a_class_and_regions_are_no_trouble() -> None:
    batch = pair(2)
    batch["label"][batch["label"] == 2] = 0
    regions = LabelSpace(names=("whole", "core"), values=((1, 2), (2,)), region_order=(1, 2))
    for labels in (None, regions):
        method = tiny_bijros(labels=labels)
        update = stepping(method)
        update.begin(AT, [])
        logged = method.training_step(batch, update, AT)
        assert all(value.isfinite() for value in logged.values())
        assert "factor" in logged and "left" in logged


def test_an_integrated_flow_trains_too() -> None:
    method = tiny_bijros(diffeomorphic=True)
    update = stepping(method)
    update.begin(AT, [])
    assert all(value.isfinite() for value in method.training_step(pair(), update, AT).values())


def test_published_encoders_load_with_any_prefix_and_nothing_less() -> None:
    encoder = UNetEncoder(1, (4, 8))
    official = {}
    for name, tensor in encoder.state_dict().items():
        _, stage, _, rest = name.split(".", 3)
        place = "inc" if stage == "0" else f"down{stage}.maxpool_conv.1"
        official[f"{place}.double_conv.{rest}"] = torch.randn(tensor.shape) if tensor.ndim else tensor
    for prefix in ("", "fea_extractor.", "upper.fea_extractor.", "module.fea_extractor."):
        target = UNetEncoder(1, (4, 8))
        file = {prefix + name: tensor for name, tensor in official.items()}
        if prefix.startswith("fea"):
            file = {"state_dict": {**file, "Seg_Decoder.outc.conv.weight": torch.zeros(35, 32, 1, 1, 1)}}
        assert load_published_encoder(target, unwrapped(file), where="file") == 24
        assert torch.equal(target.stages[0].body[0].weight, official["inc.double_conv.0.weight"])
    del official["inc.double_conv.1.running_var"]
    with pytest.raises(CheckpointError, match=r"missing: stages\.0\.body\.1\.running_var"):
        load_published_encoder(UNetEncoder(1, (4, 8)), official, where="file")
    with pytest.raises(CheckpointError, match="no encoder of Bi-JROS"):
        load_published_encoder(UNetEncoder(1, (4, 8)), {"x": torch.zeros(1)}, where="file")


def test_weights_for_the_encoder_leave_out_its_pretraining() -> None:
    assert [phase.name for phase in tiny_bijros().phases()] == ["encoder", "bilevel"]
    (only,) = tiny_bijros(encoder_weights="encoder.ckpt").phases()
    assert only.name == "bilevel" and only.num_steps == 10
    (only,) = tiny_bijros(encoder_share=0.0).phases()
    assert only.name == "bilevel"


def test_separate_passes_can_be_measured_without_values_too() -> None:
    assert measure(BiJROS, tiny_bijros(shared_passes=False).plan).kept > 0


@pytest.fixture
def small_sam(monkeypatch: pytest.MonkeyPatch) -> None:
    small = SamVariant(width=24, depth=2, heads=2, global_blocks=(1,))
    monkeypatch.setitem(SAM_VARIANTS, "vit_b", small)


def test_sam_stays_frozen_and_both_decoders_learn_from_it(small_sam: None) -> None:
    method = tiny_bijros(encoder="sam", side=(4, 16, 16))
    assert [phase.name for phase in method.phases()] == ["bilevel"]
    batch = pair()
    batch = {k: v[..., :4, :, :] if torch.is_tensor(v) else v for k, v in batch.items()}
    update, before = stepping(method), state(method.network)
    update.begin(AT, [])
    method.training_step(batch, update, AT)
    after = state(method.network)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.split(".")[0] for name in moved} == {"registration", "segmentation"}


@pytest.mark.parametrize(("iterations", "steps"), [(10, 7), (4000, 2000), (10_000, 3400)])
def test_short_trainings_spend_more_on_the_encoder(iterations: int, steps: int) -> None:
    plan = tiny_bijros(encoder_steps=2000).plan
    first, _ = BiJROS(replace(plan, training=plan.training.of_length(iterations))).phases()
    assert first.num_steps == steps


def test_rrl_learns_from_sam_in_two_phases_and_then_as_bijros(small_sam: None) -> None:
    method = tiny_bijros(encoder="rrl", teacher="vit_b", channels=(4, 8, 256), encoder_share=0.4)
    assert [(phase.name, phase.num_steps) for phase in method.phases()] == [
        ("distil", 2), ("mutual", 2), ("bilevel", 6),
    ]  # fmt: skip
    teacher = state(method.distillation.teacher)  # type: ignore[union-attr]
    for phase, terms in (("distil", {"imitation"}), ("mutual", {"imitation", "coarse", "final", "distance"})):
        update = stepping(method, phase)
        at = Progress(phase=phase, step=0, num_steps=2)
        update.begin(at, [])
        logged = method.training_step(pair(), update, at)
        assert terms <= logged.keys() and all(value.isfinite() for value in logged.values())
    assert same(teacher, state(method.distillation.teacher))  # type: ignore[union-attr]
    with pytest.raises(MethodError, match="encoder rrl"):
        tiny_bijros(encoder="bijros", teacher="vit_b")


@pytest.mark.parametrize(
    ("encoder", "weights", "sam", "teacher"),
    [
        ("rrl", "sam_vit_l_0b3195.pth", "vit_l", "vit_l"),
        ("rrl", "encoder.ckpt", "vit_b", "none"),
        ("rrl", None, "vit_b", "none"),
        ("sam", "sam_vit_h_4b8939.pth", "vit_h", "none"),
    ],
)
def test_the_name_of_the_weight_file_tells_which_sam_it_is_and_who_learns_from_it(
    encoder: str, weights: str | None, sam: str, teacher: str
) -> None:
    plan = replace(tiny_bijros().plan, encoder=encoder, encoder_weights=weights)
    settled = BiJROS.settle(plan)
    assert (settled.config["sam"], settled.config["teacher"]) == (sam, teacher)
    assert BiJROS.settle(settled) == settled
    chosen = BiJROS.settle(replace(plan, config={**plan.config, "sam": "vit_h", "teacher": "none"}))
    assert (chosen.config["sam"], chosen.config["teacher"]) == ("vit_h", "none")


def test_cross_entropy_teaches_segmentation_and_registration_nothing() -> None:
    gradients = {}
    regions = LabelSpace(names=("whole", "core"), values=((1, 2), (2,)), region_order=(1, 2))
    for labels in (None, regions):
        for weight in (0.0, 1.0):
            method = tiny_bijros(labels=labels)
            torch.nn.init.normal_(method.network.registration.head.weight, std=0.1)
            both = method.pairing.register(pair(), with_gradient=True, both_ways=False)
            loss = method.pairing.consistency(both, cross_entropy=weight)
            parts = method.network.registration.head.weight, method.network.segmentation.head.weight
            gradients[weight] = torch.autograd.grad(loss, parts)
        assert torch.allclose(gradients[0.0][0], gradients[1.0][0], atol=1e-7)
        assert not torch.allclose(gradients[0.0][1], gradients[1.0][1], atol=1e-3)


def test_images_drawn_from_labels_are_the_same_for_the_same_seed() -> None:
    seen = []
    for seed in (0, 0, 1):
        method = tiny_bijros(synthetic=1.0)
        update, at = stepping(method, "encoder"), Progress(phase="encoder", step=0, num_steps=4)
        update.begin(at, [])
        torch.manual_seed(seed)
        seen.append(method.training_step(pair(), update, at)["drawn"])
    assert seen[0] == seen[1] != seen[2]


@torch.no_grad()
def test_a_drawn_image_shows_the_likeliest_class_of_each_voxel() -> None:
    pairing = tiny_bijros().pairing
    target = pairing.members(pair()["label"])
    soft = 0.6 * target + 0.4 * target.roll(1, dims=1)
    image, shown = pairing.drawn(soft, channels=2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(shown, target) and image.shape == (1, 2, SIDE, SIDE, SIDE)


@pytest.mark.parametrize(("encoder", "side"), [("bijros", 16), ("synthseg", 32)])
def test_computing_twice_changes_memory_and_nothing_else(encoder: str, side: int) -> None:
    logged, weights = [], []
    for recompute in (False, True):
        method = tiny_bijros(encoder=encoder, recompute=recompute)
        for phase in ("encoder", "bilevel"):
            update, at = stepping(method, phase), Progress(phase=phase, step=0, num_steps=4)
            update.begin(at, [])
            torch.manual_seed(0)
            logged.append(method.training_step(pair(2), update, at))
        weights.append(state(method))
    for one, other in zip(logged[:2], logged[2:], strict=True):
        assert all(torch.allclose(one[name], other[name], atol=1e-6) for name in one)
    assert all(torch.allclose(weights[0][name], weights[1][name], atol=1e-6) for name in weights[0])
    heavy = tiny_bijros(encoder=encoder, side=side).plan
    light = BiJROS.lighter(replace(heavy, config=encode(BiJROS.Config(**heavy.config))))
    assert light is not None and BiJROS.lighter(light) is None
    assert measure(BiJROS, light).kept < 0.8 * measure(BiJROS, heavy).kept


def situation(**changes: Any) -> Situation:
    facts = dict(
        num_datasets=1, num_labelled=1, num_unlabelled=9, num_classes=5, domains=(), modalities=("MR",),
        is_picture=False, spacing_mm=(1.0, 1.0, 1.0), median_shape=(160, 190, 160),
    )  # fmt: skip
    return Situation(**{**facts, **changes})  # type: ignore[arg-type]


def test_it_is_first_choice_for_one_label_and_fits_no_pictures() -> None:
    proposal = BiJROS.propose(situation())
    assert proposal.score >= 90 and {f"config.{name}" for name in proposal.config} <= proposal.reasons.keys()
    assert BiJROS.propose(situation(num_labelled=30)).score < 20
    for changes in ({"is_picture": True}, {"num_labelled": 0}, {"num_unlabelled": 0}, {"num_datasets": 2}):
        assert not BiJROS.propose(situation(**changes)).fits, changes


def test_its_config_is_plain_data_and_odd_numbers_are_refused() -> None:
    assert encode(BiJROS.Config())["blend"] == [0.6, 0.95]
    with pytest.raises(ValueError, match="odd"):
        BiJROS.Config(window=4)
    with pytest.raises(ValueError, match="encoder_share"):
        BiJROS.Config(encoder_share=1.0)
