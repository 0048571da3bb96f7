"""The corner cases of S&D Messenger, each as a law."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from medplan.data.labels import IGNORE, LabelSpace
from medplan.errors import CheckpointError, DataError, MethodError, PlanError
from medplan.learning.difficulty import Difficulty, hard_dice
from medplan.learning.pseudo_labels import paste_consistency, pseudo_labels, weighted_cross_entropy
from medplan.method import Progress, Situation
from medplan.methods.sdmessenger import Config, SDMessenger
from medplan.networks.mit import MixTransformer
from medplan.plan.schema import DatasetPlan, Grid, Normalisation, Plan, Pyramid, Training
from medplan.randomness import fold_in, generator
from medplan.samples.cases import Case
from medplan.samples.paste import boxes_around_foreground, boxes_inside_extent, paste
from medplan.train.loader import collate

ROLES = {"labelled": ("a", "b"), "unlabelled": ("c", "d", "e"), "validation": ("f",)}
NUM_STEPS = 10


def make_plan(*, dims=3, encoder="unet", num_classes=2, roles=ROLES, iterations=NUM_STEPS, seed=0, **config):
    side = 16 if encoder == "unet" else 32
    size = (8, side, side) if dims == 3 else (1, side, side)
    labels = LabelSpace(
        names=tuple(f"organ{n}" for n in range(1, num_classes)),
        values=tuple((n,) for n in range(1, num_classes)),
    )
    dataset = DatasetPlan(
        name="Toy",
        channels=("MR",),
        modalities=("MR",),
        labels=labels,
        normalisations=(Normalisation(scheme="zscore"),),
        folds=(dict(roles),),
    )
    pyramid = Pyramid(
        features=(4, 8),
        strides=((1, 1, 1), (2, 2, 2)),
        kernels=((3, 3, 3), (3, 3, 3)),
        blocks=(1, 1),
        decoder_blocks=(1,),
    )
    return Plan(
        name="Toy",
        method="sdmessenger",
        dims=dims,
        datasets=(dataset,),
        grid=Grid(spacing_mm=(1.0, 1.0, 1.0)),
        patch_size=size,
        encoder=encoder,
        pyramid=pyramid,
        training=Training(iterations=iterations, batch_size=2, lr=0.01, seed=seed),
        config=config,
    )


def make_method(plan):
    torch.manual_seed(3)
    return SDMessenger(plan).train()


class Store:
    """Cases in memory whose labels say when they are read."""

    def __init__(self, plan, *, shape=(10, 20, 20)):
        self.plan, self.labels_read = plan, []
        self.cases = {}
        for number, name in enumerate("abcdef"):
            rng = np.random.default_rng(number)
            codes = np.zeros(shape, np.int16)
            codes[3:7, 5:12, 6:14] = 1
            image = (rng.standard_normal((1, *shape)) + 3 * codes).astype(np.float32)
            self.cases[f"Toy/{name}"] = _Watched(
                key=f"Toy/{name}", pixels=image, codes=codes, locations={1: np.argwhere(codes == 1)}
            )

    def role(self, name):
        return self.plan.roles(0).get(name, ())

    def __getitem__(self, key):
        case = self.cases[key]
        object.__setattr__(case, "read", self.labels_read)
        return case

    def plan_of(self, key):
        return self.plan.datasets[0]


class _Watched(Case):
    def label(self, lower=None, upper=None):
        self.read.append(self.key)
        return super().label(lower, upper)


class Descent:
    """Implements `Update` with plain gradient descent, and remembers the gradients by name."""

    def __init__(self, method):
        self.method, self.optimizer = method, method.optimizers("train")["main"]
        self.gradient = {}

    def minimise(self, loss, name="main", *, keep_graph=False):
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward(retain_graph=keep_graph)
        self.gradient = {
            name: None if parameter.grad is None else parameter.grad.clone()
            for name, parameter in self.method.network.named_parameters()
        }
        assert all(g is None or bool(g.isfinite().all()) for g in self.gradient.values())
        self.optimizer.step()


def make_batch(plan, store, step=0):
    method = SDMessenger(plan)
    (phase,) = method.phases()
    elements = [phase.sample(store, generator(plan.training.seed, step, i)) for i in range(phase.batch_size)]
    elements = [{**element, "seed": fold_in(step, i)} for i, element in enumerate(elements)]
    return phase.augment(collate(elements), torch.Generator().manual_seed(step))


def at(step, num_steps=NUM_STEPS):
    return Progress(phase="train", step=step, num_steps=num_steps)


def step(method, batch, number, update=None):
    torch.manual_seed(number)
    return method.training_step(dict(batch), update or Descent(method), at(number))


# 1. no foreground


def test_without_foreground_nothing_is_pasted_and_everything_stays_finite():
    plan = make_plan(warmup=0.0)
    method, batch = make_method(plan), make_batch(plan, Store(plan))
    batch["label"] = torch.zeros_like(batch["label"])
    losses = step(method, batch, 5)
    assert losses["consistency"] == 0
    assert all(torch.isfinite(value) for value in losses.values())
    assert torch.isfinite(method.difficulty(hard_dice(batch["label"], batch["label"], 2))).all()


# 2. the border


def test_a_released_square_that_touches_the_border_is_clipped():
    codes = torch.zeros(200, 1, 12, 12, dtype=torch.int16)
    codes[:, :, 1:11, 1:11] = 1
    areas = boxes_inside_extent(codes, torch.rand(200, 6), side=8).mask((1, 12, 12)).flatten(1).sum(1)
    assert areas.max() == 64 and 0 < areas.min() < 64


def test_a_released_square_needs_foreground_larger_than_itself():
    codes = torch.zeros(4, 1, 12, 12, dtype=torch.int16)
    codes[:, :, 2:10, 2:11] = 1
    assert boxes_inside_extent(codes, torch.rand(4, 6), side=7).mask((1, 12, 12)).sum() == 0
    assert boxes_inside_extent(codes, torch.rand(4, 6), side=6).mask((1, 12, 12)).flatten(1).any(1).all()


@pytest.mark.parametrize("shape", [(1, 10, 14), (6, 10, 14)])
def test_boxes_around_foreground_hold_foreground_of_every_class_alike(shape):
    codes = torch.zeros(300, *shape, dtype=torch.int16)
    codes[:, 0, 2:8, 1:6] = 1
    codes[:, 0, 9, 13] = 2
    boxes = boxes_around_foreground(codes, 3, torch.rand(300, 6), fraction=(0.2, 0.2))
    mask = boxes.mask(shape).squeeze(1)
    assert ((codes > 0) & mask).flatten(1).any(1).all()
    share = ((codes == 2) & mask).flatten(1).any(1).float().mean()
    assert 0.35 < share < 0.65
    sides = boxes.upper_B3 - boxes.lower_B3
    assert (sides <= torch.tensor([max(1, round(0.2 * side)) for side in shape])).all()


def test_a_box_is_the_pasted_voxels_and_the_compared_ones():
    """The released code compares the transposed square: rows x, columns y."""
    image, other = torch.rand(3, 2, 4, 9, 12), torch.rand(3, 2, 4, 9, 12)
    codes = (torch.rand(3, 4, 9, 12) > 0.7).to(torch.int16)
    mask = boxes_around_foreground(codes, 2, torch.rand(3, 6), fraction=(0.3, 0.6)).mask(codes.shape[1:])
    pasted = paste(other, image, mask)
    assert ((pasted == image).all(1, keepdim=True) == mask).all()
    assert paste_consistency(image, pasted, mask) == 0
    assert paste_consistency(image, pasted, ~mask) > 0


# 3. absent classes


def test_class_weights_stay_finite_over_1000_steps_with_absent_classes():
    difficulty = Difficulty(4)
    rng = torch.Generator().manual_seed(0)
    for _ in range(1000):
        codes = torch.randint(0, 2, (1, 30), generator=rng)
        predicted = torch.randint(0, 3, (1, 30), generator=rng)
        dice = hard_dice(predicted, codes, 4)
        weights = difficulty(dice)
        assert dice[3] == 0.5
        assert torch.isfinite(weights).all() and (weights >= 0).all()


def test_a_perfect_prediction_has_dice_one_and_unannotated_voxels_do_not_count():
    codes = torch.tensor([[0, 1, 2, IGNORE]])
    torch.testing.assert_close(hard_dice(torch.tensor([[0, 1, 2, 2]]), codes, 3), torch.ones(3))


def test_a_batch_without_annotation_gives_a_loss_of_zero():
    logits = torch.randn(2, 3, 1, 4, 4)
    assert weighted_cross_entropy(logits, torch.full((2, 1, 4, 4), IGNORE)) == 0


# 4. batches


def test_one_labelled_and_one_unlabelled_sample_are_enough():
    plan = make_plan(warmup=0.0)
    batch = make_batch(plan, Store(plan))
    alone = {key: value[:1] for key, value in batch.items()}
    assert torch.isfinite(step(make_method(plan), alone, 1)["loss"])


def test_more_labelled_than_unlabelled_cases_are_all_drawn():
    roles = {"labelled": ("a", "b", "d", "e"), "unlabelled": ("c",)}
    plan = make_plan(roles=roles)
    store = Store(plan)
    drawn = {
        case
        for number in range(30)
        for pair in make_batch(plan, store, number)["case"]
        for case in pair.split()
    }
    assert drawn == {"Toy/a", "Toy/b", "Toy/c", "Toy/d", "Toy/e"}


def test_without_unlabelled_cases_the_message_names_the_role():
    plan = make_plan(roles={"labelled": ("a",)})
    with pytest.raises(MethodError, match="unlabelled"):
        make_batch(plan, Store(plan))


# 5. unequal sizes


@pytest.mark.parametrize("warmup", [0.0, 1.0])
def test_patches_of_unequal_size_are_refused(warmup):
    plan = make_plan(warmup=warmup)
    batch = make_batch(plan, Store(plan))
    batch["unlabelled_image"] = batch["unlabelled_image"][..., :8]
    with pytest.raises(MethodError, match="one shape"):
        step(make_method(plan), batch, 2)


# 6. batch invariance


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


# 7. batch statistics


@pytest.mark.parametrize("config", [{}, {"ema": 0.9}])
def test_making_pseudo_labels_leaves_statistics_and_mode_alone(config):
    plan = make_plan(dims=2, encoder="mit_b0", **config)
    method = make_method(plan)
    before = {name: value.clone() for name, value in method.network.named_buffers()}
    assert any("running_mean" in name for name in before)
    method._pseudo_labels(torch.randn(2, 1, *plan.patch_size))
    assert all(torch.equal(value, before[name]) for name, value in method.network.named_buffers())
    assert all(module.training for module in method.network.modules())


# 8. any size


@torch.no_grad()
def test_sides_that_are_no_multiple_of_32_keep_the_size():
    method = make_method(make_plan(dims=2, encoder="mit_b0")).eval()
    predict = method.predictor(Store(method.plan)["Toy/f"], ())
    assert predict(torch.randn(1, 1, 1, 50, 43), [(0, 0, 0)]).shape == (1, 2, 1, 50, 43)


# 9. classes


@pytest.mark.parametrize("num_classes", [2, 14])
def test_two_and_fourteen_classes_are_learned_in_every_dimension(num_classes):
    for dims in (2, 3):
        plan = make_plan(dims=dims, num_classes=num_classes, warmup=0.0)
        batch = make_batch(plan, Store(plan))
        batch["label"] = torch.randint(0, num_classes, batch["label"].shape).short()
        assert torch.isfinite(step(make_method(plan), batch, 1)["loss"])


def test_a_label_value_that_is_not_declared_is_an_error_naming_the_file():
    labels = make_plan(num_classes=2).datasets[0].labels
    with pytest.raises(DataError, match=r"case7\.nii\.gz"):
        labels.encode(np.array([[[0, 1, 9]]]), where="labelsTr/case7.nii.gz")


def test_overlapping_regions_are_refused():
    plan = make_plan()
    regions = LabelSpace(names=("whole", "core"), values=((1, 2), (2,)), region_order=(1, 2))
    plan = replace(plan, datasets=(replace(plan.datasets[0], labels=regions),))
    with pytest.raises(MethodError, match="exclude each other"):
        SDMessenger(plan)


# 10. warm-up


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


# 11. which labels are read


def test_labels_of_unlabelled_cases_are_never_read_even_if_they_are_there():
    plan = make_plan(warmup=0.0)
    store = Store(plan)
    for number in range(20):
        make_batch(plan, store, number)
    assert set(store.labels_read) == {"Toy/a", "Toy/b"}


def test_a_case_with_two_roles_is_refused():
    with pytest.raises(ValueError, match="both 'labelled' and 'unlabelled'"):
        make_plan(roles={"labelled": ("a",), "unlabelled": ("a", "b")})


# 12. resume


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


# 14. paste


def test_the_same_seed_pastes_the_same_box_and_sizes_may_differ_per_axis():
    codes = torch.zeros(2, 6, 10, 30, dtype=torch.int16)
    codes[:, 2:4, 3:8, 5:25] = 1
    masks = []
    for seed in (1, 1, 2):
        uniform = torch.rand(2, 6, generator=torch.Generator().manual_seed(seed))
        masks.append(boxes_around_foreground(codes, 2, uniform, fraction=(0.1, 0.9)).mask(codes.shape[1:]))
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])


def test_an_element_pastes_the_same_box_whatever_batch_it_is_in():
    plan = make_plan()
    method, batch = make_method(plan), make_batch(plan, Store(plan))
    together = method.pasting.boxes(batch["label"], batch["paste"])
    alone = method.pasting.boxes(batch["label"][1:], batch["paste"][1:])
    assert torch.equal(alone.lower_B3, together.lower_B3[1:])
    assert torch.equal(alone.upper_B3, together.upper_B3[1:])


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_pasted_back_the_labelled_patch_lies_around_the_box_in_place_of_inside_it(share, monkeypatch):
    plan = make_plan(warmup=0.0, paste_back=share)
    method, batch = make_method(plan), make_batch(plan, Store(plan))
    batch["label"][0] = 0
    seen = []
    monkeypatch.setattr(method.network, "forward", lambda image, *_, **__: seen.append(image) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        step(method, batch, 5)
    size, codes = len(batch["image"]), batch["label"]
    mask = method.pasting.boxes(codes, batch["paste"]).mask(codes.shape[1:]) ^ bool(share)
    mask[0] = False
    assert mask[1].any() and not mask[1].all()
    expected = torch.where(mask, batch["image"], batch["unlabelled_image"])
    assert torch.equal(seen[0][size:], expected)


def test_pseudo_labels_below_the_threshold_do_not_count():
    logits = torch.tensor([[2.0, 0.1], [0.0, 0.0]]).view(1, 2, 1, 1, 2)
    assert pseudo_labels(logits, threshold=0.7).flatten().tolist() == [0, IGNORE]
    assert pseudo_labels(logits).flatten().tolist() == [0, 0]


# choices


def test_the_strong_view_shows_the_same_voxels_in_other_intensities():
    plan = make_plan(strong_view=True)
    batch = make_batch(plan, Store(plan))
    weak, strong = batch["unlabelled_image"], batch["strong_unlabelled_image"]
    assert weak.shape == strong.shape and not torch.equal(weak, strong)
    pair = torch.stack([weak[0].flatten(), strong[0].flatten()])
    assert torch.corrcoef(pair)[0, 1] > 0.6


def test_with_another_contrast_edges_stay_and_intensities_change_places():
    plan = make_plan(strong_view=True, contrast=1.0)
    batch = make_batch(plan, Store(plan))
    weak, strong = batch["unlabelled_image"], batch["strong_unlabelled_image"]
    assert weak.shape == strong.shape and strong.isfinite().all()
    assert not torch.equal(weak, strong)
    with pytest.raises(PlanError, match="strong_view"):
        make_method(make_plan(contrast=1.0))


def test_slices_are_not_turned_upside_down():
    (phase,) = make_method(make_plan(dims=2, turning=1.0)).phases()
    spatial = phase.sample.sampler.spatial
    assert spatial.degrees == 30 and spatial.rotation_probability == spatial.scaling_probability == 1


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


@pytest.mark.parametrize("alone", [False, True])
def test_labelled_patches_are_learned_from_in_the_strong_view(alone):
    plans = [make_plan(strong_view=strong, learn_from_unlabelled=not alone) for strong in (False, True)]
    weak, strong = (make_batch(plan, Store(plan)) for plan in plans)
    assert not torch.equal(weak["image"], strong["image"])
    assert torch.equal(weak["label"], strong["label"])
    if not alone:
        assert torch.equal(weak["unlabelled_image"], strong["unlabelled_image"])


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
    with pytest.raises(CheckpointError, match="misses"):
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
    assert SDMessenger.propose(replace(situation, encoder_weights="mit_b2.pth")).encoder == "mit_b2"
    assert SDMessenger.propose(replace(situation, num_unlabelled=0, domains=("CT", "MR"))).fits
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


def test_config_is_the_methods_own():
    assert SDMessenger.Config is Config
