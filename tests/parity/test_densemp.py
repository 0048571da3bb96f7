"""Dilated ResNet, prototypes, alignment and dense contrast equal the original's numbers, in float64."""

import pytest
import torch
import torch.nn.functional as F

from medplan.data.labels import IGNORE
from medplan.networks.dense_contrast import DenseContrast, info_nce, match
from medplan.networks.dilated_resnet import SIZES, FewShotEncoder, load_published
from medplan.networks.prototypes import Classifier, alignment_loss, query_loss, shrink

MASKS = {
    "big": ((60, 161), (77, 189)),
    "small": ((100, 120), (100, 120)),
    "tiny": ((101, 103), (99, 102)),
    "query": ((40, 149), (90, 214)),
}


def box(name):
    (top, bottom), (left, right) = MASKS[name]
    mask = torch.zeros(1, 256, 256, dtype=torch.float64)
    mask[:, top : bottom + 1, left : right + 1] = 1
    return mask


def encoder_of(original, module, prefix=""):
    encoder = FewShotEncoder(SIZES["resnet101"]).eval()
    state = original.state(module)
    load_published(encoder, {key.removeprefix(prefix): value for key, value in state.items()}, where="test")
    encoder.double()
    # Loading goes through float32, which the fill is in; its exceptions are products that are not.
    encoder.backbone.load_state_dict(
        {
            key: state[name]
            for key in encoder.backbone.state_dict()
            for name in state
            if name.endswith(f"backbone.{key}")
        }
    )
    encoder.localconv.weight.data = next(v for k, v in state.items() if k.endswith("localconv.weight"))
    return encoder


@pytest.mark.slow
@torch.no_grad()
def test_dilated_encoder_equals_the_original(reference):
    original = reference("densemp_encoder")
    encoder = encoder_of(original, "encoder")
    for letter in "ab":
        image = 2 * original.input(f"densemp_image_{letter}") - 1
        maps = encoder.backbone.maps(image, 8)
        original.check(f"{letter}_layer3", maps[2])
        original.check(f"{letter}_layer4", maps[3])
        original.check(f"{letter}_features", encoder.localconv(maps[3]))


@pytest.mark.slow
@torch.no_grad()
def test_backbone_at_output_stride_32_equals_the_original(reference):
    original = reference("densemp_stage1_backbone")
    encoder = FewShotEncoder(SIZES["resnet101"]).eval()
    state = original.state("backbone")
    load_published(encoder, state, where="test")
    encoder.double()
    encoder.backbone.load_state_dict(state)
    for number, features in enumerate(encoder.backbone.maps(2 * original.input("stage1_image") - 1, 32), 1):
        original.check(f"stage{number}", features)


def alp_features(original):
    first, second = (original.input(f"alp_{part}_vector") - 0.5 for part in ("object", "background"))

    def blend(noise, mask):
        cells = mask[:, None, 4::8, 4::8]
        features = original.input(noise) - 0.5 + 0.6 * (cells * first + (1 - cells) * second)
        return features.requires_grad_()

    return blend("alp_support_noise", box("big")), blend("alp_query_noise", box("query"))


def on_grid(mask):
    return shrink(mask, (32, 32), how="bilinear")


@pytest.mark.parametrize("name", ["big", "small", "tiny"])
def test_scores_and_losses_equal_the_original(reference, name):
    original = reference("densemp_alp")
    support, query = alp_features(original)
    mask = box(name)
    small, behind = on_grid(mask), on_grid(1 - mask)
    original.check(f"{name}_mask32", small[:, None])
    scores = {
        kind: Classifier(window=window).segment(query, support, small, behind)
        for kind, window in (("train", 4), ("eval", 2))
    }
    for kind, found in scores.items():
        original.check(f"{name}_{kind}_scores", found)
        original.check(f"{name}_{kind}_logits", F.interpolate(found, (256, 256), mode="bilinear"))
    label = box("query").clone()
    label[:, :6] = IGNORE
    segmentation = query_loss(scores["train"], label)
    alignment = alignment_loss(Classifier(window=4), scores["train"], query, support, mask)
    original.check(f"{name}_query_loss", segmentation)
    original.check(f"{name}_align_loss", alignment)
    original.check(f"{name}_total_loss", segmentation + alignment)
    if name == "big":
        gradients = torch.autograd.grad(alignment.sum(), (support, query))
        original.check("big_align_gradient_support", gradients[0])
        original.check("big_align_gradient_query", gradients[1])


@torch.no_grad()
def test_plain_features_and_global_prototypes_equal_the_original(reference):
    original = reference("densemp_alp")
    support, query = alp_features(original)
    mask, behind = on_grid(box("big")), on_grid(1 - box("big"))
    found = Classifier(window=4, local=False).segment(query, support, mask, behind)
    original.check("big_global_both_scores", found)
    support, query = (original.input(f"alp_{part}_plain") - 0.5 for part in ("support", "query"))
    for kind, window in (("train", 4), ("eval", 2)):
        found = Classifier(window=window).segment(query, support, mask, behind)
        original.check(f"plain_{kind}_scores", found)


@pytest.mark.slow
@torch.no_grad()
def test_whole_few_shot_network_equals_the_original(reference):
    original = reference("densemp_fewshot")
    encoder = encoder_of(original, "net")

    def picture(name, mask):
        noise = original.input(f"fewshot_{name}")
        return torch.where(mask[:, None] > 0, 0.5 * (noise - 0.5) + 1.5, 2 * (noise - 0.5))

    features = encoder(torch.cat([picture("support", box("big")), picture("query", box("query"))]))
    original.check("features", features)
    support, query = features[:1], features[1:]
    for name in ("big", "small"):
        for kind, window in (("eval", 2), ("train", 4)):
            classifier = Classifier(window=window)
            scores = classifier.segment(query, support, on_grid(box(name)), on_grid(1 - box(name)))
            original.check(f"{name}_{kind}_logits", F.interpolate(scores, (256, 256), mode="bilinear"))
        original.check(f"{name}_align_loss", alignment_loss(classifier, scores, query, support, box(name)))


def contrast_of(original):
    backbone = torch.nn.Identity()
    contrast = DenseContrast(backbone, channels=2048, queue_length=1024).double()
    state = original.state("densecl")
    names = {"mlp.0": "whole.0", "mlp.2": "whole.2", "mlp2.0": "cells.0", "mlp2.2": "cells.2"}
    for part in ("weight", "bias"):
        for theirs, mine in names.items():
            contrast.head.get_parameter(f"{mine}.{part}").data = state[f"encoder_q.1.{theirs}.{part}"]
            buffer = contrast.key_head.get_buffer(f"{mine}.{part}".replace(".", "/"))
            buffer.copy_(state[f"encoder_k.1.{theirs}.{part}"])
    for mine, theirs in (("whole_queue", "densecl_queue"), ("dense_queue", "densecl_queue2")):
        contrast.get_buffer(mine).copy_(F.normalize(original.input(theirs) - 0.5, dim=0).T)
    return backbone, contrast


def test_dense_contrast_equals_the_original(reference):
    original = reference("densemp_densecl")
    common = original.input("densecl_common")
    query = (common + 0.7 * original.input("densecl_query")).requires_grad_()
    key = common.flip(-1) + 0.7 * original.input("densecl_key")
    backbone, contrast = contrast_of(original)
    projected = contrast.head(query)
    original.check("query_global", projected.whole)
    original.check("query_dense", projected.cells)
    original.check("query_dense_mean", projected.average)
    original.check("match_index", match(query, key), tolerance=0)
    contrast.trail(backbone)
    weight = contrast.key_head.get_buffer("whole/2/weight")
    original.check("key_weight_after", weight)
    projected = contrast.key_head.call(contrast.head, key)
    original.check("key_global", projected.whole)
    original.check("key_dense", projected.cells)
    original.check("key_dense_mean", projected.average)
    whole, cells = contrast.compare(query, key)
    original.check("loss_global_half", 0.5 * whole[None])
    original.check("loss_dense_half", 0.5 * cells[None])
    original.check("loss_total", 0.5 * (whole + cells)[None])
    original.check("gradient_query_features", torch.autograd.grad(0.5 * (whole + cells), query)[0])
    original.check("queue_after", contrast.get_buffer("whole_queue")[:8].T)
    original.check("queue2_after", contrast.get_buffer("dense_queue")[:8].T)
    assert int(contrast.get_buffer("place")) == 4


def test_info_nce_equals_the_original(reference):
    original = reference("densemp_densecl")
    positive, negative = (2 * original.input(f"nce_{kind}") - 1 for kind in ("positive", "negative"))
    # Cosines are given: a query of one number, the rest spelt out by vectors along it.
    losses = [
        info_nce(torch.ones(1, 1, dtype=torch.float64), one[None], rest[:, None])
        for one, rest in zip(positive, negative, strict=True)
    ]
    original.check("nce_loss", torch.stack(losses).mean()[None])
