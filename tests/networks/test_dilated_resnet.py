"""Published weights: every way they are named finds its place, and what does not fit is said."""

import pytest
import torch

from medplan.checkpoint import unwrapped
from medplan.errors import CheckpointError
from medplan.networks.dilated_resnet import SIZES, FewShotEncoder, load_published


@pytest.fixture
def encoder():
    torch.manual_seed(1)
    return FewShotEncoder(SIZES["tiny"])


@pytest.fixture
def backbone():
    torch.manual_seed(2)
    return FewShotEncoder(SIZES["tiny"]).backbone.state_dict()


ONE = torch.ones(3)
NAMES = {
    "torchvision": ("", {"fc.weight": ONE}, None),
    "moco": ("module.encoder_q.", {"module.queue": ONE, "module.encoder_k.conv1.weight": ONE}, "state_dict"),
    "densecl in training": ("encoder_q.0.", {"encoder_q.1.mlp.0.weight": ONE}, "state_dict"),
    "openselfsup": ("backbone.", {"head.x": ONE}, "state_dict"),
    "few-shot": ("encoder.backbone.", {"encoder.aspp_out.1.weight": ONE}, None),
    "own": ("encoder.backbone.", {"contrast.place": ONE}, "weights"),
}


@pytest.mark.parametrize("source", NAMES)
def test_weights_of_every_source_find_their_place(encoder, backbone, source):
    prefix, others, wrapper = NAMES[source]
    state = {**others, **{prefix + key: value for key, value in backbone.items()}}
    load_published(encoder, unwrapped({wrapper: state} if wrapper else state), where="test")
    assert all(torch.equal(value, backbone[key]) for key, value in encoder.backbone.state_dict().items())


def test_a_projection_is_taken_where_the_file_has_one(encoder, backbone):
    state = {f"encoder.backbone.{key}": value for key, value in backbone.items()}
    weight = torch.full_like(encoder.localconv.weight, 0.5)
    load_published(encoder, {**state, "encoder.localconv.weight": weight}, where="test")
    assert torch.equal(encoder.localconv.weight, weight)


def test_other_channels_get_the_mean_of_the_first_layer(backbone):
    encoder = FewShotEncoder(SIZES["tiny"], in_channels=2)
    load_published(encoder, backbone, where="test")
    picture = torch.ones(1, 1, 8, 8)
    three = torch.nn.functional.conv2d(picture.expand(-1, 3, -1, -1), backbone["conv1.weight"])
    two = torch.nn.functional.conv2d(picture.expand(-1, 2, -1, -1), encoder.backbone.conv1.weight)
    assert torch.allclose(three, two, atol=1e-5)


def test_what_does_not_fit_is_said(encoder, backbone):
    with pytest.raises(CheckpointError, match="holds no ResNet"):
        load_published(encoder, {"patch_embed.weight": torch.ones(3)}, where="test")
    del backbone["layer4.0.conv1.weight"]
    with pytest.raises(CheckpointError, match=r"missing: layer4\.0\.conv1\.weight"):
        load_published(encoder, backbone, where="test")
    with pytest.raises(CheckpointError, match="do not fit"):
        load_published(FewShotEncoder(SIZES["small"]), backbone, where="test")
