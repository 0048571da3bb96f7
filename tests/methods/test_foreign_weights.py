"""A weight file that is another network's is refused in one sentence, whatever it holds."""

from dataclasses import replace

import pytest
import torch

from medplan.errors import MedplanError
from medplan.networks.sam import SAM_VARIANTS
from tests.conformance.tiny import build, tiny_plan
from tests.methods.bijros_case import tiny_bijros
from tests.methods.sdmessenger_case import make_method, make_plan

ONE = torch.zeros(3)
FILES = {
    "nothing": {},
    "another network": {"module.a": ONE},
    "a vision transformer that is not SAM's": {
        "pos_embed": torch.zeros(1, 197, 8),
        "patch_embed.proj.weight": torch.zeros(8, 3, 16, 16),
        "blocks.0.attn.rel_pos_h": ONE,
    },
    "the same with a prefix": {"image_encoder.pos_embed": ONE, "image_encoder.patch_embed.proj.weight": ONE},
    "adapters alone": {"w_a_000": ONE},
    "a part of SegFormer": {"block1.0.attn.k.weight": ONE, "block1.0.attn.v.weight": torch.zeros(3, 2)},
    "a part of a U-Net": {"down1.x": ONE, "up1.conv.a": ONE, "inc.double_conv.0.weight": ONE},
    "tasks of nobody": {"prior_fuse_1.prior_selection.task_prior": ONE},
    "kernels in two dimensions": {"unet_conv_downarm_0_0/x/kernel:0": torch.zeros(3, 3, 1, 24)},
    "a part of a ResNet": {"conv1.weight": ONE, "layer9.x": ONE},
}
METHODS = {
    "bijros": tiny_bijros,
    "bijros, sam": lambda: tiny_bijros(encoder="sam", side=(4, 16, 16), sam="vit_b"),
    "bijros, synthseg": lambda: tiny_bijros(encoder="synthseg"),
    "imedsam": lambda: build(replace(tiny_plan("imedsam"), encoder="vit_b")),
    "sdmessenger": lambda: make_method(make_plan(dims=2, encoder="mit_b0")),
    "densemp": lambda: build(tiny_plan("densemp")),
    "hermes": lambda: build(tiny_plan("hermes")),
    "hermes, medformer": lambda: build(replace(tiny_plan("hermes"), encoder="medformer")),
}


@pytest.mark.parametrize("name", METHODS)
def test_weights_of_another_network_are_refused_in_one_sentence(name, monkeypatch):
    monkeypatch.setitem(SAM_VARIANTS, "vit_b", SAM_VARIANTS["tiny"])
    method = METHODS[name]()
    before = {key: value.clone() for key, value in method.state_dict().items()}
    for what, weights in FILES.items():
        with pytest.raises(MedplanError) as caught:
            method.load_encoder(weights)
        assert len(str(caught.value)) < 1500, what
    assert all(torch.equal(value, before[key]) for key, value in method.state_dict().items())
