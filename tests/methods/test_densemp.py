"""DenseMP: phases, what they may see, what they freeze, and what it predicts."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from medplan import checkpoint
from medplan.errors import MethodError, PlanError
from medplan.method import Progress, Situation
from medplan.methods.densemp import DenseMP
from medplan.networks.dense_contrast import queue_length
from medplan.networks.dilated_resnet import SIZES, FewShotEncoder
from medplan.plan.memory import measure
from medplan.plan.schema import DatasetPlan, Normalisation
from medplan.records import encode
from medplan.train.loader import collate
from tests.conformance.tiny import build, run, tiny_plan, tiny_store


def planned(*, novel=(), pretrain=0, training=None, **config):
    plan = tiny_plan("densemp", **(training or {}))
    dataset = replace(plan.datasets[0], novel=novel)
    datasets = [dataset]
    if pretrain:
        datasets.append(
            DatasetPlan(
                name="Pictures",
                channels=("R", "G", "B"),
                modalities=("RGB",) * 3,
                labels=replace(dataset.labels, names=(), values=()),
                normalisations=(Normalisation(scheme="unit"),) * 3,
                folds=({"pretrain": tuple(f"p{n:03d}" for n in range(pretrain))},),
            )
        )
    return replace(plan, datasets=tuple(datasets), config={**plan.config, **config})


def situation(**changes):
    facts = {
        "num_datasets": 1, "num_labelled": 5, "num_unlabelled": 0, "num_classes": 4, "domains": (),
        "modalities": ("MR",), "is_picture": False, "spacing_mm": (7.7, 1.25, 1.25),
        "median_shape": (36, 256, 256),
    }  # fmt: skip
    return Situation(**{**facts, **changes})


def test_it_is_proposed_where_classes_are_novel_and_one_case_can_show_them():
    fits = DenseMP.propose(situation(has_novel_classes=True))
    assert fits.fits and fits.score == 90 and fits.patch_size == (1, 224, 224)
    assert fits.extra["superpixels"]["min_size_mm2"] == 625
    assert DenseMP.propose(situation()).score == 10
    assert not DenseMP.propose(situation(num_labelled=0)).fits
    assert not DenseMP.propose(situation(num_datasets=2)).fits
    assert DenseMP.propose(situation(median_shape=(36, 2000, 20))).patch_size == (1, 256, 256)
    assert DenseMP.propose(situation(spacing_mm=None, median_shape=(1, 30, 20))).patch_size == (1, 64, 64)


@pytest.mark.parametrize("memory", [2**30, 2 * 2**30, round(4.5 * 2**30)])
def test_what_is_proposed_fits_the_memory(memory):
    proposal = DenseMP.propose(situation(memory_bytes=memory, spacing_mm=None))
    assert proposal.patch_size == (1, 256, 256)
    plan = tiny_plan("densemp")
    plan = replace(
        plan,
        encoder=proposal.encoder or DenseMP.needs.encoders[0],
        patch_size=proposal.patch_size,
        training=replace(plan.training, batch_size=1),
        config=encode(DenseMP.Config(**proposal.config, shares=(0.5, 0.5, 0.0))),
    )
    assert 0.4 * memory < measure(DenseMP, plan).total <= memory
    with_weights = DenseMP.propose(situation(memory_bytes=memory, encoder_weights="resnet101.pth"))
    assert with_weights.encoder is None


@pytest.mark.parametrize(
    ("shares", "novel", "names"),
    [
        ([1, 1, 1], (), ["contrastive", "superpixel", "finetune"]),
        ([0, 1, 1], (), ["superpixel", "finetune"]),
        ([0, 0, 1], (), ["finetune"]),
        ([1, 1, 1], ("liver", "spleen"), ["contrastive", "superpixel"]),
        ([0, 0, 1], ("liver", "spleen"), ["superpixel"]),
    ],
)
def test_phases_without_a_share_or_without_a_class_to_learn_are_left_out(shares, novel, names):
    plan = planned(shares=shares, novel=novel)
    phases = build(plan).phases()
    assert [phase.name for phase in phases] == names
    assert sum(phase.num_steps for phase in phases) == plan.training.iterations
    assert [phase.validate for phase in phases] == [False] * (len(names) - 1) + [True]


@pytest.mark.parametrize("wrong", [{"shares": [1, 0, 0]}, {"shares": [1, -1, 3]}, {"manual_share": 2}])
def test_numbers_out_of_range_are_named(wrong):
    with pytest.raises(PlanError, match=next(iter(wrong))):
        build(planned(**wrong))


def holds_novel(store, element):
    """Whether an element shows a slice that was marked."""
    return any(
        float(np.abs(np.asarray(value)).max()) > 1e5
        for key, value in element.items()
        if key.endswith("image")
    )


def marked(plan):
    """Return the store with every slice that shows the spleen set to a huge value."""
    store = tiny_store(plan)
    cases = {}
    for key, case in store.cases.items():
        pixels = case.pixels.copy()
        pixels[:, np.unique(case.locations[2][:, 0])] = 1e6
        codes = case.codes if key in store.role("labelled") else None
        cases[key] = replace(
            case, pixels=pixels, codes=codes, locations=case.locations if codes is not None else {}
        )
    return type(store)(cases=cases, roles=store.roles, plan=plan)


@pytest.mark.parametrize("phase", ["superpixel", "finetune"])
def test_in_setting_2_no_slice_with_a_novel_organ_is_learnt_from_and_in_setting_1_some_are(phase):
    seen = {}
    for setting in (1, 2):
        plan = planned(novel=("spleen",), setting=setting)
        store = marked(plan)
        (chosen,) = [one for one in build(plan).phases() if one.name == phase]
        elements = [chosen.sample(store, np.random.default_rng(seed)) for seed in range(80)]
        seen[setting] = [holds_novel(store, element) for element in elements]
    assert not any(seen[2]) and any(seen[1])


def test_contrastive_views_come_from_the_pretraining_pictures_and_else_keep_to_the_setting():
    plan = planned(novel=("spleen",))
    (first, *_) = build(plan).phases()
    assert first.sample.slices.without == {"Phantom": (2,)}
    store = marked(plan)
    keys = {first.sample(store, np.random.default_rng(seed))["case"] for seed in range(30)}
    assert keys <= set(store.role("labelled"))


def test_fine_tuning_learns_no_novel_class():
    plan = planned(novel=("spleen",))
    assert build(plan).phases()[-1].sample.labelled.codes == {"Phantom": (1,)}


@pytest.mark.parametrize(
    ("pictures", "asked", "length"), [(0, 16, 16), (315, 65536, 312), (2, 65536, 4), (315, 10, 8), (0, 3, 4)]
)
def test_the_queue_holds_whole_batches_and_no_picture_twice(pictures, asked, length):
    method = build(planned(pretrain=pictures, queue_length=asked))
    assert queue_length(pictures, asked=asked, batch_size=method.config.contrastive_batch) == length
    assert len(method.contrast.get_buffer("whole_queue")) == length
    assert length % method.config.contrastive_batch == 0


@pytest.mark.parametrize(
    ("config", "kind", "second"),
    [
        ({}, torch.optim.AdamW, 1.0),
        ({"optimizer": "sgd"}, torch.optim.SGD, 0.95),
    ],
)
def test_episodes_are_learnt_with_adamw_after_a_warm_up_or_as_released(config, kind, second):
    method = build(planned(**{**config, "finetune_lr": 1e-4}))
    for phase, lr in (("superpixel", 3e-3), ("finetune", 1e-4)):
        (optimizer,) = method.optimizers(phase).values()
        assert type(optimizer) is kind and optimizer.param_groups[0]["lr"] == pytest.approx(lr)
    (phase,) = (phase for phase in method.phases() if phase.name == "superpixel")
    assert (phase.schedule(0.0) < 1e-3) == (second == 1.0)
    assert phase.schedule(0.05) == pytest.approx(second**5 if second < 1 else 0.95**0.9)


class Steps:
    """An update that steps nothing."""

    def minimise(self, loss, name="main", *, keep_graph=False):
        self.loss = loss.detach()


def one_step(method, plan, phase="superpixel"):
    (chosen,) = [one for one in method.phases() if one.name == phase]
    store = tiny_store(plan)
    batch = collate([{**chosen.sample(store, np.random.default_rng(n)), "seed": n} for n in range(2)])
    if chosen.augment is not None:
        batch = chosen.augment(batch, torch.Generator())
    update = Steps()
    terms = method.training_step(batch, update, Progress(phase=phase, step=0, num_steps=2))
    return terms, batch


def test_batch_statistics_follow_the_episodes():
    plan = planned()
    method = build(plan).train()
    before = method.encoder.backbone.bn1.running_mean.clone()
    one_step(method, plan)
    assert not torch.equal(before, method.encoder.backbone.bn1.running_mean)


def test_an_episode_whose_example_was_moved_away_does_not_count():
    method = build(planned()).eval()
    _, batch = one_step(method, planned())
    whole = {key: value[:1] for key, value in batch.items()}
    batch["support_label"][1] = 0
    at = Progress(phase="superpixel", step=0, num_steps=2)
    both, alone = method.training_step(batch, Steps(), at), method.training_step(whole, Steps(), at)
    assert both["empty"] == 0.5 and torch.allclose(both["loss"], alone["loss"], atol=1e-5)
    batch["support_label"][:] = 0
    assert method.training_step(batch, Steps(), at)["loss"] == 0


def test_weights_of_each_phase_start_another_run(tmp_path):
    run(planned(), tmp_path)
    for name in ("contrastive.pt", "superpixel.pt", "last.pt"):
        weights = checkpoint.load_published(tmp_path / name)
        method = build(planned())
        method.load_encoder(weights)
        saved = {
            key.removeprefix("encoder."): value
            for key, value in weights.items()
            if key.startswith("encoder.")
        }
        own = method.encoder.state_dict()
        assert all(torch.equal(own[key], value) for key, value in saved.items())
        key = method.contrast.key_backbone.get_buffer("conv1/weight")
        assert torch.equal(key, method.encoder.backbone.conv1.weight)


def test_the_planner_can_measure_every_phase_also_with_novel_classes():
    assert measure(DenseMP, planned(novel=("spleen",), pretrain=5)).total > 0


def test_the_outputs_are_the_plans_classes_or_those_that_are_named():
    plan = planned()
    method, store = build(plan).eval(), tiny_store(plan)
    case = store[store.role("validation")[0]]
    support = [store[key] for key in store.role("support")]
    patch = torch.zeros(1, 1, 1, 32, 32)
    with torch.no_grad():
        assert method.predictor(case, support)(patch, [(0, 0, 0)]).shape[1] == 3
        named = replace(case, prompts={"classes": ("a", "b", "c", "d")})
        assert method.predictor(named, support)(patch, [(0, 0, 0)]).shape[1] == 5
    with pytest.raises(MethodError, match="give an example with --support"):
        method.predictor(case, [])


def test_regions_are_refused():
    plan = planned()
    labels = replace(plan.datasets[0].labels, region_order=(1, 2))
    with pytest.raises(MethodError, match="exclude each other"):
        DenseMP(replace(plan, datasets=(replace(plan.datasets[0], labels=labels),)))


def test_plans_are_plain_data():
    plan = planned(novel=("spleen",), pretrain=3)
    assert encode(plan)["datasets"][0]["novel"] == ["spleen"]
    assert set(SIZES) == set(DenseMP.needs.encoders)
    assert FewShotEncoder(SIZES["tiny"])(torch.zeros(1, 3, 32, 64)).shape == (1, 32, 4, 8)
