"""Hermes as a method: tasks of several datasets, transfer, and what predictions depend on."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from medplan.data.labels import LabelSpace
from medplan.errors import CheckpointError, MethodError
from medplan.method import Progress, Situation
from medplan.methods.hermes import METHOD
from medplan.plan.schema import Plan
from medplan.samples.task_patches import filled
from tests.conformance.tiny import CPU, build, run, tiny_plan, tiny_store

CORNERS = [(0, 0, 0)]


def make_plan(*, names=("Phantom", "Second"), encoder="residual", **config) -> Plan:
    plan = tiny_plan("hermes", iterations=2)
    datasets = tuple(replace(plan.datasets[0], name=name) for name in names)
    return METHOD.settle(replace(plan, datasets=datasets, encoder=encoder, config={**plan.config, **config}))


def answer(method, plan, name="Phantom", **prompts):
    store = tiny_store(plan)
    case = replace(store[f"{name}/v"], prompts=prompts)
    patch = torch.from_numpy(case.image((0, 0, 0), plan.patch_size))[None]
    method.eval()
    with torch.no_grad():
        return method.predictor(case, ())(patch, CORNERS)


def batch_of(plan, keys=4):
    method = build(plan)
    store, sample = tiny_store(plan), method.phases()[0].sample
    elements = [sample(store, np.random.default_rng(number)) for number in range(keys)]
    return method, elements


def collate(elements, plan):
    batch = {key: torch.as_tensor(np.stack([e[key] for e in elements])) for key in ("tasks", "modality")}
    batch |= {
        key: torch.as_tensor(np.stack([e[key] for e in elements])) for key in ("true_modality", "source")
    }
    shape = (len(elements), *plan.patch_size)
    image = torch.randn(len(elements), 1, *plan.patch_size, generator=torch.Generator().manual_seed(0))
    batch["shape"] = [element["shape"] for element in elements]
    return {**batch, "image": image, "label": torch.zeros(shape, dtype=torch.int16)}


class Recorder:
    """An update that takes no step and keeps the loss and its gradients."""

    def __init__(self, method):
        self.method = method

    def minimise(self, loss, name="main", *, keep_graph=False):
        self.loss = loss.detach()
        loss.backward()


@pytest.mark.parametrize("encoder", ["residual", "medformer"])
def test_a_batch_without_any_foreground_still_teaches(encoder):
    plan = make_plan(encoder=encoder)
    method, elements = batch_of(plan)
    update = Recorder(method)
    method.training_step(collate(elements, plan), update, Progress(phase="train", step=0, num_steps=2))
    assert update.loss.isfinite()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in method.network.parameters())


def test_elements_say_which_tasks_their_dataset_has_labels_for():
    plan = make_plan()
    one = LabelSpace(names=("liver",), values=((1,),), others_are_background=True)
    plan = METHOD.settle(replace(plan, datasets=(plan.datasets[0], replace(plan.datasets[1], labels=one)),
                                 config={**plan.config, "tasks": []}))  # fmt: skip
    _, elements = batch_of(plan, keys=12)
    tasks = {int(element["source"]): element["tasks"].tolist() for element in elements}
    assert tasks == {0: [0, 1], 1: [2, -1]}


def test_datasets_are_drawn_with_their_shares():
    plan = make_plan()
    shares = (0.8, 0.2)
    datasets = tuple(replace(d, share=share) for d, share in zip(plan.datasets, shares, strict=True))
    _, elements = batch_of(replace(plan, datasets=datasets), keys=300)
    counts = Counter(int(element["source"]) for element in elements)
    assert counts[0] / 300 == pytest.approx(0.8, abs=0.07)


def test_a_share_of_the_images_is_shown_as_of_unknown_modality():
    plan = make_plan(hide_modality=0.5, modalities=["T1"])
    _, elements = batch_of(plan, keys=60)
    assert {int(element["true_modality"]) for element in elements} == {0}
    assert 15 < sum(int(element["modality"]) == -1 for element in elements) < 45


def test_a_dataset_taken_away_or_put_in_between_leaves_the_numbers_of_the_others():
    tasks = make_plan(names=("A", "C")).config["tasks"]
    grown = make_plan(names=("A", "B", "C"), tasks=tasks)
    assert grown.config["tasks"][: len(tasks)] == tasks
    assert build(grown).task_ids == ((0, 1), (4, 5), (2, 3))
    assert build(make_plan(names=("C",), tasks=tasks)).task_ids == ((2, 3),)
    assert METHOD.settle(grown) == grown


def test_datasets_that_share_tasks_have_the_same_rows():
    assert build(make_plan(names=("CT", "MR"), shared={"MR": "CT"})).task_ids == ((0, 1), (0, 1))
    with pytest.raises(MethodError, match="shared"):
        build(make_plan(shared={"Nowhere": "Phantom"}))


def test_a_voxel_belongs_to_its_most_probable_task_if_that_is_more_probable_than_not():
    plan = make_plan()
    method = build(plan)
    logits = answer(method, plan)
    assert logits.shape[1] == 3 and logits[:, 0].abs().max() == 0
    regions = LabelSpace(names=("all", "core"), values=((1, 2), (2,)), region_order=(1, 2))
    plan = replace(plan, datasets=tuple(replace(d, labels=regions) for d in plan.datasets))
    assert answer(build(METHOD.settle(plan)), plan).shape[1] == 2


def test_the_modality_may_be_given_unknown_or_wrong_but_not_unheard_of():
    plan = make_plan(modalities=["CT", "T1"])
    method = build(plan)
    told = {name: answer(method, plan, modality=name) for name in ("CT", "T1", "unknown")}
    assert torch.equal(told["T1"], answer(method, plan))
    assert not torch.equal(told["CT"], told["T1"]) and not torch.equal(told["unknown"], told["T1"])
    with pytest.raises(MethodError, match="unknown"):
        answer(method, plan, modality="ultrasound")


def trained(tmp_path, **config):
    plan = make_plan(names=("Phantom",), **config)
    return plan, run(plan, tmp_path / "first")


def test_the_average_begins_as_a_copy_and_then_trails_behind():
    plan = make_plan()
    method, elements = batch_of(plan)
    optimizer = method.optimizers("train")["main"]
    names = list(dict(method.network.named_parameters()))

    def differs():
        state = method.state_dict()
        return [
            n
            for n in names
            if not torch.equal(state[f"network.{n}"], state["average." + n.replace(".", "/")])
        ]

    assert not differs()
    for step in (0, 1, 2):
        method.training_step(
            collate(elements, plan), Recorder(method), Progress(phase="train", step=step, num_steps=10_000)
        )
        assert bool(differs()) == (step > 0)
        optimizer.step()


@pytest.mark.parametrize("encoder", ["residual", "medformer"])
def test_incremental_learning_leaves_the_old_answers_as_they_were_to_the_bit(tmp_path, encoder):
    plan, method = trained(tmp_path, encoder=encoder)
    before = answer(method, plan)
    grown = make_plan(encoder=encoder, transfer="incremental", new_datasets=["Second"])
    later = build(grown)
    later.start_from(method.state_dict(), plan, where="the first run")
    assert torch.equal(before, answer(later, grown))
    new_before = answer(later, grown, "Second")
    later.train()
    from medplan.train.loop import train

    train(later, grown, tiny_store(grown), tmp_path / "second", fold=0, runtime=CPU, workers=0)
    assert torch.equal(before, answer(later, grown))
    assert not torch.equal(new_before, answer(later, grown, "Second"))


@pytest.mark.parametrize("transfer", ["full", "priors"])
def test_transfer_keeps_what_is_common_and_learns_what_it_should(tmp_path, transfer):
    plan, method = trained(tmp_path)
    new = make_plan(names=("Second",), transfer=transfer)
    later = build(new)
    later.start_from(method.state_dict(), plan, where="the first run")
    stem = "network.stem.conv.weight"
    average = method.state_dict()["average.stem/conv/weight"]
    assert torch.equal(later.state_dict()[stem], average)
    (group,) = later.optimizers("train")["main"].param_groups
    listed = {id(parameter) for parameter in group["params"]}
    names = {name for name, p in later.network.named_parameters() if id(p) in listed}
    if transfer == "full":
        assert names == {name for name, _ in later.network.named_parameters()}
    else:
        assert all("pool." in name or "head." in name for name in names)
        assert "fusions.0.pool.added" in names and "fusions.0.pool.tasks" not in names


def test_padding_is_cut_off_in_steps_of_one_patch_and_in_predictions_alike():
    plan = make_plan()
    case = tiny_store(plan)["Phantom/v"]
    plan = replace(plan, training=replace(plan.training, batch_size=1), patch_size=(32, 48, 32))
    method, (element,) = batch_of(plan, keys=1)
    seen = []
    method.network.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape[2:])))
    batch = {**collate([element], plan), "shape": [case.shape]}
    method.training_step(batch, Recorder(method), Progress(phase="train", step=0, num_steps=2))
    with torch.no_grad():
        logits = method.eval().predictor(case, ())(batch["image"], CORNERS)
    expected = tuple(-(-length // 16) * 16 for length in case.shape)
    assert seen == [expected, expected] and logits.shape[2:] == plan.patch_size
    middle = filled(case.shape, plan.patch_size, multiple=16)
    outside = torch.ones(plan.patch_size, dtype=torch.bool)
    outside[middle] = False
    assert outside.any() and logits[:, :, outside].abs().max() == 0
    assert (logits[0, 1][middle] != 0).any()


def test_a_run_of_another_shape_or_method_is_refused(tmp_path):
    plan, method = trained(tmp_path)
    other = build(make_plan(channels=[4, 8, 12, 8]))
    with pytest.raises(CheckpointError, match="the first run"):
        other.start_from(method.state_dict(), plan, where="the first run")
    with pytest.raises(MethodError, match="supervised"):
        other.start_from(method.state_dict(), replace(plan, method="supervised"), where="the first run")


def test_the_heat_map_shows_every_task_beside_itself():
    plan = make_plan()
    record = build(plan).heatmaps()["task_similarity"]
    assert record.names == ("Phantom/liver", "Phantom/spleen", "Second/liver", "Second/spleen")
    values = np.array(record.values)
    assert np.allclose(np.diag(values), 1, atol=1e-5) and np.allclose(values, values.T, atol=1e-6)


def test_the_heat_map_shows_the_weights_that_predict():
    method = build(make_plan())
    before = method.heatmaps()
    with torch.no_grad():
        for pool in method.network.pools():
            pool.tasks.normal_()
    assert method.heatmaps() == before
    method.average.update(method.network, decay=0.0)
    assert method.heatmaps() != before


def test_it_is_proposed_first_for_several_datasets_and_not_for_pictures():
    common = {"num_labelled": 9, "num_unlabelled": 0, "num_classes": 4, "domains": (), "modalities": ("CT",),
              "spacing_mm": (1.5, 1.5, 1.5), "median_shape": (64, 64, 64)}  # fmt: skip
    several = METHOD.propose(Situation(num_datasets=3, is_picture=False, **common))
    single = METHOD.propose(Situation(num_datasets=1, is_picture=False, **common))
    assert several.fits and several.score > 70 > single.score
    assert not METHOD.propose(Situation(num_datasets=3, is_picture=True, **common)).fits
    other = METHOD.propose(Situation(num_datasets=3, is_picture=False, encoder="medformer", **common))
    assert (several.weight_decay, other.weight_decay) == (1e-5, 5e-2), "as released for Hermes-R and M"


def test_a_plan_for_transfer_has_the_network_of_the_run_whatever_the_memory():
    like = make_plan(channels=[4, 8, 12, 8])
    common = {"num_labelled": 9, "num_unlabelled": 0, "num_classes": 4, "domains": (), "modalities": ("CT",),
              "spacing_mm": (1.5, 1.5, 1.5), "median_shape": (64, 64, 64), "num_datasets": 2,
              "is_picture": False, "datasets": ("Phantom", "LGE")}  # fmt: skip
    for memory in (None, 2**30, 2**35):
        config = METHOD.propose(Situation(memory_bytes=memory, like=like, **common)).config
        assert config.pop("new_datasets") == ["LGE"]
        assert config == {key: like.config[key] for key in config} and config["channels"] == [4, 8, 12, 8]


def test_little_memory_gets_a_small_network_unless_published_weights_need_the_large_one():
    common = {"num_labelled": 9, "num_unlabelled": 0, "num_classes": 4, "domains": (), "modalities": ("CT",),
              "spacing_mm": (1.5, 1.5, 1.5), "median_shape": (64, 64, 64), "num_datasets": 2,
              "is_picture": False}  # fmt: skip
    small = METHOD.propose(Situation(memory_bytes=2**30, **common))
    assert small.config["channels"][-1] < 320 and small.batch_size == 1 and "config.channels" in small.reasons
    assert small.patch_size is not None and METHOD.lighter(make_plan(**small.config)) is None
    assert METHOD.lighter(make_plan(channels=METHOD.Config.channels)).config["recompute"]
    roomier = METHOD.propose(Situation(memory_bytes=3 * 2**30, **common))
    assert roomier.config == small.config and (roomier.patch_size, roomier.batch_size) == (None, 4)
    for other in ({"memory_bytes": 2**35}, {}, {"memory_bytes": 2**30, "encoder_weights": "hermes.pth"}):
        assert not METHOD.propose(Situation(**other, **common)).config
    for encoder in METHOD.needs.encoders:
        build(make_plan(encoder=encoder, **small.config))
