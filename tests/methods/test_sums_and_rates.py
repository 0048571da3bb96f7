"""Losses are added up with the weights, and parameters are learned at the rates, that are written down."""

from dataclasses import replace

import pytest
import torch

from medplan.method import Progress
from medplan.methods.densemp import DENSE_SHARE
from medplan.methods.sdmessenger import HEAD_LR_FACTOR
from medplan.train.loader import collate, draw
from tests.conformance.tiny import build, tiny_plan, tiny_store
from tests.methods.bijros_case import Recorder, tiny_bijros
from tests.methods.sdmessenger_case import make_method, make_plan

AT = Progress(phase="bilevel", step=0, num_steps=1)


class Sum:
    """An update that takes no step and keeps what it was asked to minimise."""

    def minimise(self, loss, name="main", *, keep_graph=False):
        self.loss = loss.detach()


def first_terms(name, *, fraction=0.0, **config):
    """Return the terms of one step of the first phase, of which the loss is what was minimised."""
    plan = tiny_plan(name)
    plan = replace(plan, config={**plan.config, **config})
    method, store = build(plan), tiny_store(plan)
    phase = method.phases()[0]
    batch = collate([draw(store, phase, index, seed=0) for index in range(phase.batch_size)])
    if phase.augment is not None:
        batch = phase.augment(batch, torch.Generator().manual_seed(0))
    update, at = Sum(), Progress(phase=phase.name, step=round(1000 * fraction), num_steps=1000)
    terms = method.training_step(batch, update, at)
    assert terms["loss"] == update.loss
    return terms


def rates(method, phase):
    return {
        name: [group["lr"] for group in optimizer.param_groups]
        for name, optimizer in method.optimizers(phase).items()
    }


@pytest.mark.parametrize(("fraction", "strength"), [(0.4, 0.5), (0.9, 1.0)])
def test_the_unlabelled_terms_of_sdmessenger_weigh_what_the_ramp_and_the_config_say(fraction, strength):
    weights = {"unsupervised_weight": 2.0, "consistency_weight": 3.0}
    terms = first_terms("sdmessenger", fraction=fraction, warmup=0.2, warmup_steps=0, ramp=0.4, **weights)
    others = 2 * terms["pseudo"] + 3 * terms["consistency"]
    assert min(terms["pseudo"], terms["consistency"]) > 0
    assert terms["loss"] == pytest.approx(float(terms["supervised"] + strength * others), rel=1e-5)


def test_heads_of_published_encoders_learn_faster_in_sdmessenger():
    for encoder, factor in (("mit_b0", HEAD_LR_FACTOR), ("unet", 1.0)):
        method = make_method(make_plan(dims=2, encoder=encoder))
        assert rates(method, "train") == {"main": [0.01, pytest.approx(0.01 * factor)]}


def test_the_sgd_of_sdmessenger_and_densemp_is_the_released_one():
    of_densemp = replace(tiny_plan("densemp"), config={**tiny_plan("densemp").config, "optimizer": "sgd"})
    for method in (make_method(make_plan(optimizer="sgd")), build(of_densemp)):
        for phase in method.phases():
            groups = method.optimizers(phase.name)["main"].param_groups
            assert {(group["momentum"], group["nesterov"]) for group in groups} == {(0.9, False)}


def test_the_modality_has_its_weight_in_hermes():
    terms = first_terms("hermes", modality_weight=0.7, modalities=["T1", "T2"])
    assert terms["modality"] > 0
    assert terms["loss"] == pytest.approx(float(terms["segmentation"] + 0.7 * terms["modality"]), rel=1e-5)


def test_only_new_datasets_are_drawn_in_incremental_learning_of_hermes():
    plan = tiny_plan("hermes")
    grown = replace(plan, config={**plan.config, "transfer": "incremental", "new_datasets": ["Second"]})
    assert all(build(plan).phases()[0].sample.shares)
    assert [share > 0 for share in build(grown).phases()[0].sample.shares] == [False, True]


def test_segmentation_has_a_rate_of_its_own_in_bijros():
    method = tiny_bijros(segmentation_rate=7.0)
    rate = method.plan.training.lr
    assert rates(method, "bilevel") == {"reg": [rate], "seg": [pytest.approx(7 * rate)]}


def test_the_first_objective_of_bijros_weighs_what_the_config_says():
    terms = first_terms("bijros", encoder_similarity=3.0, encoder_smooth=50.0)
    assert terms["smooth"] > 0 > terms["similarity"]
    expected = 3 * terms["similarity"] + 50 * terms["smooth"] + terms["agreement"]
    assert terms["loss"] == pytest.approx(float(expected), rel=1e-5)


def test_the_upper_objective_of_bijros_weighs_what_the_config_says():
    weights = {"similarity": 2.0, "smooth": 300.0, "cycle": 5.0, "agreement": 7.0}
    method = tiny_bijros(**weights, factor_limit=0.25)
    torch.nn.init.normal_(method.network.registration.head.weight, std=0.1)
    generator = torch.Generator().manual_seed(0)
    images = {
        name: torch.rand(1, 1, 16, 16, 16, generator=generator) for name in ("image", "unlabelled_image")
    }
    label = torch.randint(0, 3, (1, 16, 16, 16), generator=generator).short()
    update = Recorder(method.optimizers("bilevel"), steps=())
    terms = method.training_step({**images, "label": label}, update, AT)
    expected = sum(weight * float(terms[name]) for name, weight in weights.items())
    assert float(terms["registration"]) == pytest.approx(expected, rel=1e-5)
    assert float(terms["factor"]) == pytest.approx(-0.25), "it is near -1 without the limit"


def test_the_contrastive_rate_of_densemp_is_for_256_pictures_and_cells_have_their_share():
    plan = tiny_plan("densemp")
    plan = replace(plan, config={**plan.config, "contrastive_batch": 64, "contrastive_lr": 0.3})
    assert rates(build(plan), "contrastive") == {"main": [pytest.approx(0.3 / 4)]}
    terms = first_terms("densemp")
    whole, cells = (1 - DENSE_SHARE) * terms["global"], DENSE_SHARE * terms["dense"]
    assert terms["loss"] == pytest.approx(float(whole + cells), rel=1e-5)
