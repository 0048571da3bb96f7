"""The laws of I-MedSAM as a method: prompts, classes, schedules, weights, proposals."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from medplan.checkpoint import unwrapped
from medplan.data.labels import LabelSpace
from medplan.errors import CheckpointError, MethodError
from medplan.learning.losses import mask_loss
from medplan.learning.schedules import WarmupThenPoly, falling
from medplan.method import Progress, Situation
from medplan.methods.imedsam import METHOD, WARMUP, Config
from medplan.networks.prompted_answers import NOTHING
from medplan.plan.memory import measure
from medplan.samples.cases import Case
from tests.conformance.tiny import build, tiny_plan
from tests.methods.imedsam_case import CONFIG
from tests.networks.test_implicit_sam import released_names, sam_file

SIDE = 32


def unsettled():
    return replace(tiny_plan("imedsam"), config=CONFIG, reasons={})


def make(**changes):
    plan = unsettled()
    config = {**plan.config, **changes.pop("config", {})}
    plan = METHOD.settle(replace(plan, config=config, **changes))
    return build(plan), plan


def case_of(shape=(1, SIDE, SIDE), **prompts):
    pixels = np.random.default_rng(0).random((1, *shape)).astype(np.float32)
    return Case(key="Phantom/a", pixels=pixels, prompts=prompts)


def logits(method, case, shape=None):
    method.eval()
    with torch.no_grad():
        if shape is not None:
            return torch.cat(list(method.answers_at(case, (), shape)), dim=1)
        corners = [(z, 0, 0) for z in range(case.shape[0])]
        patches = torch.from_numpy(case.image()).movedim(1, 0).unsqueeze(2)
        return method.predictor(case, ())(patches, corners)[:, :, 0].movedim(0, 1)


def situation(**changes):
    facts = {
        "num_datasets": 1, "num_labelled": 100, "num_unlabelled": 0, "num_classes": 1, "domains": (),
        "modalities": ("RGB",), "is_picture": True, "spacing_mm": None, "median_shape": (1, 500, 600),
    }  # fmt: skip
    return Situation(**{**facts, **changes})


def test_weights_of_the_stages_and_openness_are_the_paper_s():
    config = Config()
    assert [config.fine_weight(epoch / 1000) for epoch in (0, 3, 4, 500)] == [0.2, 0.8, 1.0, 1.0]
    assert [config.openness(epoch / 1000) for epoch in (0, 9, 19, 999)] == [0.05, 0.5, 1.0, 1.0]
    assert falling(0.0) == 1.0 and falling(1.0) == pytest.approx(0.001)


def test_wrong_numbers_are_refused():
    with pytest.raises(ValueError, match="'share' should be within"):
        Config(share=1.5)
    with pytest.raises(ValueError, match="'passes' should be at least 2"):
        Config(passes=1)
    for dropout in (0.0, 1.0):
        with pytest.raises(ValueError, match="nothing to tell doubtful points by"):
            Config(dropout=dropout)
    assert Config(dropout=0.0, uncertainty="margin").dropout == 0
    with pytest.raises(ValueError, match="for published weights"):
        Config(compat=True, from_nothing=True)


def test_loss_is_squared_dice_and_cross_entropy_counts_only_if_asked():
    torch.manual_seed(0)
    found, target = torch.randn(2, 50), torch.rand(2, 50) > 0.5
    valid = torch.ones_like(target)
    p, g = found.sigmoid(), target.float()
    naive = (1 - (2 * (p * g).sum(1) + 1e-5) / ((p * p).sum(1) + g.sum(1) + 1e-5)).mean()
    assert torch.allclose(mask_loss(found, target, valid, dice=0.8, bce=0), 0.8 * naive)
    bce = torch.nn.functional.binary_cross_entropy_with_logits(found, g)
    assert torch.allclose(mask_loss(found, target, valid), 0.8 * naive + 0.2 * bce)
    valid[:, 25:] = False
    changed = torch.where(valid, target, ~target)
    assert torch.allclose(mask_loss(found, target, valid), mask_loss(found, changed, valid))


def test_boxes_of_the_user_are_followed_slice_by_slice():
    method, _ = make()
    boxes = np.array([[1.0, 2, 3, 3, 20, 18]])
    found = logits(method, case_of((4, SIDE, SIDE), boxes=boxes))
    assert found.shape == (3, 4, SIDE, SIDE)
    empty = (found[1:] == NOTHING).flatten(2).all(2)
    assert empty.tolist() == [[True, False, False, True]] * 2
    assert (found[0] == 0).all(), "background is the logit of probability 1/2"


def test_boxes_follow_images_that_are_mirrored():
    method, _ = make()
    method.eval()
    case = case_of(boxes=np.array([[0.0, 2, 3, 1, 20, 18]]))
    turned = case_of(boxes=np.array([[0.0, SIDE - 20, SIDE - 18, 1, SIDE - 2, SIDE - 3]]))
    patches = torch.from_numpy(case.image()).movedim(1, 0).unsqueeze(2).flip(3, 4)
    with torch.no_grad():
        found = method.predictor(case, ())(patches, [(0, 0, 0)], (1, 2))
        expected = method.predictor(turned, ())(patches, [(0, 0, 0)])
    assert torch.equal(found, expected)


def test_boxes_by_class_leave_the_other_classes_to_the_mode():
    method, _ = make()
    boxes = {"liver": np.zeros((0, 6))}
    found = logits(method, case_of(boxes=boxes, mode="none"))
    assert (found[1] == NOTHING).all()
    assert torch.allclose(found[2], logits(method, case_of(mode="none"))[2], atol=1e-5)


def test_several_boxes_are_united():
    method, _ = make()
    one, two = np.array([[0.0, 2, 3, 1, 12, 9]]), np.array([[0.0, 16, 20, 1, 30, 30]])
    both = logits(method, case_of(boxes=np.concatenate([one, two])))
    expected = torch.maximum(logits(method, case_of(boxes=one)), logits(method, case_of(boxes=two)))
    assert torch.allclose(both, expected, atol=1e-5)


def test_without_boxes_a_first_look_finds_them(monkeypatch):
    method, _ = make()
    method.eval()
    seen = []
    answers = method._answers()

    def answer(maps, box, number, shape, depth):
        seen.append(box.tolist())
        field = torch.full(shape, -1.0)
        field[4:14, 6:16] = 1.0
        return field

    monkeypatch.setattr(type(answers), "answer", lambda self, *given: answer(*given))
    logits(method, case_of())
    whole = [0, 0, SIDE, SIDE]
    assert seen[0] == seen[2] == whole
    assert seen[1] == pytest.approx([5.5, 3.5, 16.5, 14.5])
    seen.clear()
    logits(method, case_of(mode="none"))
    assert seen == [whole, whole]


@pytest.mark.parametrize(("from_nothing", "expected"), [(True, 1.0), (False, -2.0)])
def test_what_a_first_look_found_weighs_as_much_as_its_boxes_where_nothing_was_published(
    monkeypatch, from_nothing, expected
):
    method, _ = make(config={"from_nothing": from_nothing})
    answers = type(method._answers())
    whole = [0, 0, SIDE, SIDE]

    def answer(self, maps, box, number, shape, depth):
        field = torch.full(shape, -1.0)
        field[4:14, 6:16] = 4.0 if box.tolist() == whole else -2.0
        return field

    monkeypatch.setattr(answers, "answer", answer)
    found = logits(method, case_of())[1, 0]
    assert (found[4:14, 6:16] == expected).all() and (found[20:] < 0).all()


@pytest.mark.parametrize(("from_nothing", "expected"), [(True, NOTHING), (False, 1.0)])
def test_nothing_is_found_far_from_a_box_where_nothing_was_published(monkeypatch, from_nothing, expected):
    method, _ = make(config={"from_nothing": from_nothing})
    monkeypatch.setattr(type(method._answers()), "answer", lambda *given: torch.ones(given[4]))
    boxes = np.array([[0.0, 10, 6, 1, 20, 26]])
    for shape in (None, (1, 3 * SIDE, 2 * SIDE)):
        found = logits(method, case_of(boxes=boxes), shape)[1, 0]
        y, x = (side // SIDE for side in found.shape)
        assert (found[9 * y : 21 * y, 4 * x : 28 * x] == 1).all()
        for outside in (found[: 9 * y], found[21 * y :], found[:, : 4 * x], found[:, 28 * x :]):
            assert (outside == expected).all()


def test_answers_come_at_any_size_and_do_not_depend_on_chunks():
    method, _ = make()
    case = case_of(mode="none")
    prepared = logits(method, case)
    assert torch.allclose(logits(method, case, (1, SIDE, SIDE)), prepared, atol=1e-5)
    for height, width in ((7, 5), (2, 3), (96, 40)):
        assert logits(method, case, (1, height, width)).shape == (3, 1, height, width)
    large = logits(method, case, (1, 3 * SIDE, 3 * SIDE))[1, 0, 1::3, 1::3]
    agreement = ((large > 0) == (prepared[1, 0] > 0)).float().mean()
    assert agreement > 0.9
    assert method.answers_at(case_of((1, 48, 40)), (), (1, 48, 40)) is None
    assert method.answers_at(case, (), (2, SIDE, SIDE)) is None


def test_a_first_look_that_finds_nothing_keeps_the_whole_image():
    method, _ = make()
    for head in method.network.decoder.coarse_heads:
        head.bias.data.fill_(-50)
    method.network.decoder.share = 0.0
    auto, none = logits(method, case_of()), logits(method, case_of(mode="none"))
    assert torch.equal(auto, none) and (auto[1:] < 0).all()


def test_a_step_with_an_empty_or_unannotated_target_is_finite():
    method, _ = make()
    for code in (0, -1):
        batch = {
            "image": torch.zeros(2, 1, 1, SIDE, SIDE),
            "label": torch.full((2, 1, SIDE, SIDE), code, dtype=torch.int16),
            "class": [0, 1], "other": [1, 0], "jitter": torch.rand(2, 4), "whole": torch.tensor([0.0, 1.0]),
            "depth": torch.zeros(2),
        }  # fmt: skip

        class Checks:
            def minimise(self, loss, name="main", *, keep_graph=False):
                gradients = torch.autograd.grad(loss, list(method.network.decoder.parameters()),
                                                allow_unused=True)  # fmt: skip
                assert all(g is None or g.isfinite().all() for g in gradients)

        losses = method.training_step(batch, Checks(), Progress(phase="train", step=0, num_steps=6))
        assert all(loss.isfinite() for loss in losses.values())


@pytest.mark.parametrize("from_nothing", [True, False])
def test_images_are_asked_a_second_time_as_a_whole_where_nothing_was_published(monkeypatch, from_nothing):
    method, _ = make(config={"from_nothing": from_nothing})
    label = torch.zeros(2, 1, SIDE, SIDE, dtype=torch.int16)
    label[:, :, 4:12, 6:20] = 1
    batch = {
        "image": torch.rand(2, 1, 1, SIDE, SIDE), "label": label, "class": [0, 0], "other": [1, 0],
        "jitter": torch.zeros(2, 4), "whole": torch.zeros(2), "depth": torch.zeros(2), "case": ["D/a", "D/b"],
    }  # fmt: skip
    asked, at_points = [], method.network.at_points

    def listen(maps, box, shape, classes, **rest):
        asked.extend(zip(box.tolist(), classes, strict=True))
        return at_points(maps, box, shape, classes, **rest)

    monkeypatch.setattr(method.network, "at_points", listen)
    method.training_step(batch, SimpleNamespace(minimise=lambda loss: None),
                         Progress(phase="train", step=0, num_steps=6))  # fmt: skip
    box, whole = [6, 4, 20, 12], [0, 0, SIDE, SIDE]
    assert asked == [(box, 0), (box, 0), (whole, 1), (whole, 0)][: 4 if from_nothing else 2]


def test_regions_have_no_background_and_are_answered_one_by_one():
    labels = LabelSpace(names=("whole", "core"), values=((1, 2), (2,)), region_order=(1, 2))
    plan = tiny_plan("imedsam")
    method, _ = make(datasets=(replace(plan.datasets[0], labels=labels),))
    assert method.members == ((1, 2), (2,))
    assert logits(method, case_of(mode="none")).shape == (2, 1, SIDE, SIDE)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_one_to_three_channels_are_taken(channels):
    plan = tiny_plan("imedsam")
    dataset = replace(
        plan.datasets[0],
        channels=("a", "b", "c")[:channels],
        modalities=plan.datasets[0].modalities * channels,
        normalisations=plan.datasets[0].normalisations * channels,
    )
    method, _ = make(datasets=(dataset,))
    assert method._embed(torch.rand(1, channels, SIDE, SIDE))[0].shape == (1, 256, 2, 2)


def test_plans_that_do_not_fit_are_refused_in_one_sentence():
    with pytest.raises(MethodError, match="square slices whose side is a multiple of 16"):
        make(patch_size=(1, 32, 48))
    plan = tiny_plan("imedsam")
    dataset = replace(
        plan.datasets[0],
        channels=tuple("abcd"),
        modalities=plan.datasets[0].modalities * 4,
        normalisations=plan.datasets[0].normalisations * 4,
    )
    with pytest.raises(MethodError, match="three channels at most"):
        make(datasets=(dataset,))


def test_compat_is_the_released_layout_at_the_released_numbers():
    method, _ = make(config={"compat": True, "whole_share": None})
    assert method.network.decoder.code.compat and method.network.encoder.compat
    assert method.phases()[0].sample.whole_share == 0
    image = torch.rand(1, 3, SIDE, SIDE)
    seen = []
    method.network.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    method.eval()
    method._embed(image)
    assert torch.equal(seen[0], image)


def test_published_weights_load_and_their_absence_is_named(monkeypatch):
    import medplan.methods.imedsam as module

    with pytest.raises(MethodError, match="has no published weights"):
        make()[0].load_encoder(sam_file(32))
    monkeypatch.setitem(module.SAM_FILES, "tiny", "sam_tiny.pth")
    method, _ = make()
    file = sam_file(64)
    method.load_encoder(file)
    state = method.network.state_dict()
    assert torch.equal(state["encoder.vit.neck.0.weight"], file["image_encoder.neck.0.weight"])
    with pytest.raises(CheckpointError, match="no image encoder of SAM"):
        method.load_encoder({"x": torch.zeros(1)})


def test_released_adapters_load_together_with_sam(monkeypatch):
    import medplan.methods.imedsam as module

    monkeypatch.setitem(module.SAM_FILES, "tiny", "sam_tiny.pth")
    plan = tiny_plan("imedsam")
    labels = LabelSpace(names=("polyp",), values=((1,),))
    datasets = (replace(plan.datasets[0], labels=labels),)
    sam, adapters = sam_file(64), released_names(4)
    method, _ = make(datasets=datasets, config={"compat": True})
    file = {**sam, **unwrapped({"model": adapters, "optimizer": {"x": torch.ones(1)}, "epoch": 1})}
    method.load_encoder(file)
    state = method.network.state_dict()
    assert torch.equal(state["encoder.vit.neck.0.weight"], file["image_encoder.neck.0.weight"])
    assert torch.equal(state["encoder.vit.blocks.2.attn.qkv.value_up.weight"], file["w_b_005"])


def test_only_what_was_published_is_frozen():
    plan = METHOD.settle(replace(unsettled(), encoder_weights=None))
    assert plan.config["from_nothing"] and METHOD.settle(plan) == plan
    assert "no weights" in plan.reasons["config.from_nothing"]
    assert METHOD(plan).phases()[0].schedule == WarmupThenPoly(WARMUP)
    plan = METHOD.settle(replace(unsettled(), encoder_weights="sam_vit_b_01ec64.pth"))
    assert not plan.config["from_nothing"]
    assert METHOD(plan).phases()[0].schedule is falling


def test_fewer_points_spare_memory_but_not_where_all_are_released():
    plan = METHOD.settle(replace(unsettled(), encoder_weights="sam_vit_b_01ec64.pth"))
    plan = replace(plan, patch_size=(1, 384, 384), config={**plan.config, "points": 0, "compat": False})
    light = METHOD.lighter(plan)
    assert light.config["points"] > 0 and METHOD.lighter(light) is None
    assert measure(METHOD, light).kept < 0.5 * measure(METHOD, plan).kept
    assert METHOD.lighter(replace(plan, config={**plan.config, "compat": True})) is None


def test_beside_published_weights_only_adapters_are_trained():
    method, _ = make(encoder_weights="sam_vit_b_01ec64.pth")
    listed = sum(p.numel() for g in method.optimizers("train")["main"].param_groups for p in g["params"])
    assert listed == sum(p.numel() for group in method.network.adapter_groups().values() for p in group)
    decoder, rest = method.optimizers("train")["main"].param_groups
    assert rest["lr"] == pytest.approx(0.05 * decoder["lr"])


def test_it_is_proposed_for_one_lesion_in_pictures_if_there_are_weights():
    with_weights = METHOD.propose(situation(encoder_weights="sam_vit_l_0b3195.pth"))
    assert with_weights.score > 60 and with_weights.encoder == "vit_l"
    silent = METHOD.propose(situation())
    assert silent.fits and silent.score < 60 and "'supervised' is safer" in silent.reason
    assert silent.encoder_weights[silent.encoder] == "sam_vit_b_01ec64.pth"
    without = METHOD.propose(situation(without_weights=True))
    assert without.encoder == "tiny" and without.score < silent.score
    assert not METHOD.propose(situation(num_labelled=0)).fits
    assert not METHOD.propose(situation(num_datasets=2)).fits


def test_a_frozen_encoder_sees_an_image_that_never_changes_once():
    plain = {"lora_rank": 0, "frequency_hidden": 0, "augment": False, "from_nothing": False}
    method, _ = make(config=plain)
    assert method.phases()[0].augment is None
    seen = []
    method.network.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    batch = {
        "image": torch.rand(2, 1, 1, SIDE, SIDE), "label": torch.ones(2, 1, SIDE, SIDE, dtype=torch.int16),
        "class": [0, 1], "other": [1, 0], "jitter": torch.rand(2, 4), "whole": torch.zeros(2),
        "depth": torch.zeros(2), "case": ["D/a", "D/b"],
    }  # fmt: skip
    losses = []
    update = SimpleNamespace(minimise=lambda loss: losses.append(loss.item()))
    for _ in range(2):
        torch.manual_seed(0)
        method.training_step(batch, update, Progress(phase="train", step=0, num_steps=6))
    assert seen == [1, 1] and losses[0] == pytest.approx(losses[1])
    again, _ = make(config={**plain, "lora_rank": 4})
    again.network.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    again.training_step(batch, update, Progress(phase="train", step=0, num_steps=6))
    assert seen == [1, 1, 2], "adapters change what the encoder says"


def test_training_without_the_weight_file_stops_with_one_sentence(monkeypatch, tmp_path):
    from medplan.commands.training import _build

    monkeypatch.setenv("MEDPLAN_WEIGHTS", str(tmp_path))
    plan = replace(tiny_plan("imedsam"), encoder_weights="sam_vit_b_01ec64.pth")
    with pytest.raises(CheckpointError, match=r"'sam_vit_b_01ec64\.pth' is neither .*--encoder-weights none"):
        _build(plan, None, resume=False)
