"""What S&D Messenger computes: its corner cases, each as a law."""

import copy
from dataclasses import replace

import pytest
import torch

from medplan.data.labels import LabelSpace
from medplan.errors import CheckpointError, MethodError, PlanError
from medplan.learning.difficulty import hard_dice
from medplan.method import Situation
from medplan.methods.sdmessenger import SDMessenger
from medplan.networks.mit import MixTransformer
from tests.methods.sdmessenger_case import Descent, Store, at, make_batch, make_method, make_plan, step


def test_without_foreground_nothing_is_pasted_and_everything_stays_finite():
    plan = make_plan(warmup=0.0)
    method, batch = make_method(plan), make_batch(plan, Store(plan))
    batch["label"] = torch.zeros_like(batch["label"])
    losses = step(method, batch, 5)
    assert losses["consistency"] == 0
    assert all(torch.isfinite(value) for value in losses.values())
    assert torch.isfinite(method.difficulty(hard_dice(batch["label"], batch["label"], 2))).all()


def test_one_labelled_and_one_unlabelled_sample_are_enough():
    plan = make_plan(warmup=0.0)
    batch = make_batch(plan, Store(plan))
    alone = {key: value[:1] for key, value in batch.items()}
    assert torch.isfinite(step(make_method(plan), alone, 1)["loss"])


@pytest.mark.parametrize("warmup", [0.0, 1.0])
def test_patches_of_unequal_size_are_refused(warmup):
    plan = make_plan(warmup=warmup)
    batch = make_batch(plan, Store(plan))
    batch["unlabelled_image"] = batch["unlabelled_image"][..., :8]
    with pytest.raises(MethodError, match="one shape"):
        step(make_method(plan), batch, 2)


@pytest.mark.parametrize("dims, encoder", [(3, "unet"), (2, "unet"), (2, "mit_b0")])
@pytest.mark.parametrize("config", [{}, {"ema": 0.9}, {"memory": "paired"}])
@torch.no_grad()
def test_a_patch_alone_and_in_a_batch_have_the_same_logits(dims, encoder, config):
    plan = make_plan(dims=dims, encoder=encoder, **config)
    method = make_method(plan).eval()
    case = Store(plan)["Toy/f"]
    patches = torch.randn(3, 1, *plan.patch_size)
    predict = method.predictor(case, ())
    together = predict(patches, [(0, 0, 0)] * 3)
    assert together.shape == (3, 2, *plan.patch_size)
    torch.testing.assert_close(predict(patches[1:2], [(0, 0, 0)]), together[1:2], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("config", [{}, {"ema": 0.9}])
def test_making_pseudo_labels_leaves_statistics_and_mode_alone(config):
    plan = make_plan(dims=2, encoder="mit_b0", **config)
    method = make_method(plan)
    before = {name: value.clone() for name, value in method.network.named_buffers()}
    assert any("running_mean" in name for name in before)
    method._pseudo_labels(torch.randn(2, 1, *plan.patch_size))
    assert all(torch.equal(value, before[name]) for name, value in method.network.named_buffers())
    assert all(module.training for module in method.network.modules())


@torch.no_grad()
def test_sides_that_are_no_multiple_of_32_keep_the_size():
    method = make_method(make_plan(dims=2, encoder="mit_b0")).eval()
    predict = method.predictor(Store(method.plan)["Toy/f"], ())
    assert predict(torch.randn(1, 1, 1, 50, 43), [(0, 0, 0)]).shape == (1, 2, 1, 50, 43)


@pytest.mark.parametrize("num_classes", [2, 14])
def test_two_and_fourteen_classes_are_learned_in_every_dimension(num_classes):
    for dims in (2, 3):
        plan = make_plan(dims=dims, num_classes=num_classes, warmup=0.0)
        batch = make_batch(plan, Store(plan))
        batch["label"] = torch.randint(0, num_classes, batch["label"].shape).short()
        assert torch.isfinite(step(make_method(plan), batch, 1)["loss"])


def test_overlapping_regions_are_refused():
    plan = make_plan()
    regions = LabelSpace(names=("whole", "core"), values=((1, 2), (2,)), region_order=(1, 2))
    plan = replace(plan, datasets=(replace(plan.datasets[0], labels=regions),))
    with pytest.raises(MethodError, match="exclude each other"):
        SDMessenger(plan)


@pytest.mark.parametrize("dims, encoder", [(3, "unet"), (2, "mit_b0")])
def test_in_warmup_the_unlabelled_flow_has_no_gradient_but_feeds_the_labelled_one(dims, encoder):
    plan = make_plan(dims=dims, encoder=encoder, warmup=0.5)
    method, batch = make_method(plan), make_batch(plan, Store(plan))
    update = Descent(copy.deepcopy(method))
    assert set(step(update.method, batch, 4, update)) == {"loss", "supervised"}
    gradient = update.gradient
    unlabelled = {name: g for name, g in gradient.items() if ".unlabelled." in name}
    assert unlabelled and all(g is None or not g.any() for g in unlabelled.values())
    keys = [
        g for name, g in gradient.items() if name.endswith((".labelled.key.weight", ".labelled.value.weight"))
    ]
    assert keys and all(g.any() for g in keys)
    other = copy.deepcopy(method)
    changed = Descent(other)
    step(other, {**batch, "unlabelled_image": batch["unlabelled_image"].flip(3)}, 4, changed)
    stem = next(name for name in gradient if name.startswith("encoder."))
    assert not torch.equal(changed.gradient[stem], gradient[stem])


@pytest.mark.parametrize("config", [{"warmup_exchange": False}, {"messenger": "off"}])
def test_a_warmup_without_exchange_learns_as_if_there_were_no_unlabelled_cases(config):
    plan = make_plan(warmup=0.5, **config)
    alone = replace(plan, config={**plan.config, "learn_from_unlabelled": False})
    batch = make_batch(plan, Store(plan))
    found, expected = step(make_method(plan), batch, 4), step(make_method(alone), batch, 4)
    assert found == expected


def test_after_warmup_the_unlabelled_flow_learns():
    plan = make_plan(warmup=0.5)
    method, batch = make_method(plan), make_batch(plan, Store(plan))
    update = Descent(method)
    step(method, batch, 5, update)
    assert all(g.any() for name, g in update.gradient.items() if ".unlabelled." in name)


def test_the_unsupervised_terms_rise_from_warmup_over_the_ramp():
    method = make_method(make_plan(warmup=0.2, ramp=0.4))
    assert [method.strength(f) for f in (0.0, 0.19, 0.4, 0.6, 0.99)] == pytest.approx([0, 0, 0.5, 1, 1])


@pytest.mark.parametrize(("iterations", "start"), [(50, 0.75), (100, 0.6), (1000, 0.2)])
def test_warmup_lasts_for_its_least_steps_but_no_longer_than_three_quarters(iterations, start):
    method = make_method(make_plan(iterations=iterations, warmup=0.2, warmup_steps=60))
    assert (method.strength(start - 0.01), method.strength(start + 0.01)) == (0, 1)


@pytest.mark.parametrize("config", [{}, {"ema": 0.9, "strong_view": True, "threshold": 0.6}])
def test_a_copy_made_from_the_state_goes_on_with_the_same_losses(config):
    plan = make_plan(warmup=0.2, **config)
    batches = [make_batch(plan, Store(plan), number) for number in range(6)]
    method = make_method(plan)
    update = Descent(method)
    for number in range(3):
        step(method, batches[number], number, update)
    other = SDMessenger(plan).train()
    other.load_state_dict(method.state_dict())
    resumed = Descent(other)
    resumed.optimizer.load_state_dict(copy.deepcopy(update.optimizer.state_dict()))
    for number in range(3, 6):
        expected = step(method, batches[number], number, update)
        found = step(other, batches[number], number, resumed)
        assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_the_moving_average_makes_the_predictions_and_is_not_optimised():
    plan = make_plan(ema=0.5, warmup=0.0)
    method, batch = make_method(plan), make_batch(plan, Store(plan))
    listed = {id(p) for group in method.optimizers("train")["main"].param_groups for p in group["params"]}
    assert {id(p) for p in method.parameters()} == listed
    method.training_step(batch, Descent(method), at(300, num_steps=1000))
    method.eval()
    predict = method.predictor(Store(plan)["Toy/f"], ())
    patch = torch.randn(1, 1, *plan.patch_size)
    assert not torch.allclose(predict(patch, [(0, 0, 0)]), method.network(patch)[0])


def test_learning_from_labels_alone_is_the_same_network():
    plan = make_plan(learn_from_unlabelled=False, roles={"labelled": ("a", "b")})
    method = make_method(plan)
    assert set(method.state_dict()) == set(make_method(make_plan()).state_dict())
    assert set(step(method, make_batch(plan, Store(plan)), 5)) == {"loss", "supervised"}


def test_compat_brings_the_slips_back_on_slices_only():
    with pytest.raises(MethodError, match="2-D"):
        SDMessenger(make_plan(compat=True))
    plan = make_plan(dims=2, compat=True, warmup=0.0, paste_side=4, class_weights=False)
    plan_fixed = replace(plan, config={**plan.config, "compat": False})
    batch = make_batch(plan, Store(plan))
    batch["label"][:, :, 2:12, 8:] = 1
    found, fixed = step(make_method(plan), batch, 3), step(make_method(plan_fixed), batch, 3)
    assert found["supervised"] < fixed["supervised"], "L_x has no Dice as released"
    assert found["consistency"] != fixed["consistency"]


@pytest.mark.parametrize(
    "config, message",
    [
        ({"ema": 1.5}, "ema"),
        ({"warmup": 0.8, "ramp": 0.4}, "ramp"),
        ({"paste_fraction": (0.5, 0.2)}, "rising"),
    ],
)
def test_numbers_out_of_range_are_refused(config, message):
    with pytest.raises(PlanError, match=message):
        SDMessenger(make_plan(**config))


def test_published_weights_go_to_a_mix_transformer_only():
    method = make_method(make_plan(dims=2, encoder="mit_b0"))
    with pytest.raises(CheckpointError, match=r"missing: .*that the file was made for"):
        method.load_encoder({})
    with pytest.raises(MethodError, match="no published weights"):
        make_method(make_plan()).load_encoder({})
    assert isinstance(method.network.encoder, MixTransformer)


def test_it_is_proposed_where_labels_are_fewer_than_images_or_domains_are_several():
    situation = Situation(
        num_datasets=1,
        num_labelled=2,
        num_unlabelled=9,
        num_classes=2,
        domains=(),
        modalities=("MR",),
        is_picture=False,
        spacing_mm=(1.0, 1.0, 1.0),
        median_shape=(80, 100, 100),
    )
    assert SDMessenger.propose(situation).fits
    assert SDMessenger.propose(situation).encoder == "unet"
    with_weights = SDMessenger.propose(replace(situation, encoder_weights="mit_b2.pth"))
    assert (with_weights.encoder, with_weights.batch_size) == ("mit_b2", 8)
    wished = SDMessenger.propose(replace(situation, encoder="mit_b0"))
    assert (wished.dims, SDMessenger.propose(situation).dims) == (2, None)
    assert SDMessenger.propose(replace(situation, num_unlabelled=0, domains=("CT", "MR"))).fits
    across = SDMessenger.propose(replace(situation, domains=("CT", "MR")))
    assert across.config["match"] > 0 == SDMessenger.propose(situation).config["match"]
    for other in ({"num_labelled": 0}, {"num_unlabelled": 0}, {"num_datasets": 2}):
        assert not SDMessenger.propose(replace(situation, **other)).fits


def test_it_learns_to_segment_with_two_labels():
    plan = make_plan(iterations=40, warmup=0.2, paste_fraction=(0.3, 0.6))
    method, store = make_method(plan), Store(plan)
    update = Descent(method)
    for number in range(40):
        torch.manual_seed(number)
        method.training_step(make_batch(plan, store, number), update, at(number, 40))
    method.eval()
    case = store["Toy/f"]
    lower, upper = (1, 2, 2), (9, 18, 18)
    with torch.no_grad():
        logits = method.predictor(case, ())(torch.from_numpy(case.image(lower, upper))[None], [lower])
    predicted, truth = logits.argmax(1)[0].numpy() == 1, case.label(lower, upper) == 1
    assert 2 * (predicted & truth).sum() / (predicted.sum() + truth.sum()) > 0.8
