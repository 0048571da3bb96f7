"""SAM's image encoder, built for other sizes than it was published for, equals the original, in float64."""

import pytest
import torch

from medplan.networks.sam import build_sam_image_encoder, load_sam_image_encoder


@pytest.mark.parametrize("size", [128, pytest.param(160, marks=pytest.mark.slow)])
@torch.no_grad()
def test_encoder_equals_the_original_block_by_block(reference, size):
    original = reference("sam_encoder")
    encoder = build_sam_image_encoder("vit_b", size).eval()
    load_sam_image_encoder(encoder, original.state(key=f"state_dict_{size}"), where="reference")
    encoder.double()
    found = {}
    encoder.patch_embed.register_forward_hook(lambda _, __, tokens: found.update(patch_embed=tokens))
    for number, block in enumerate(encoder.blocks):
        block.register_forward_hook(lambda _, __, tokens, n=number: found.update({f"block{n}": tokens}))
    found["neck"] = encoder(original.image("sam_encoder/image", 1, 3, size, size))
    for stage in ("patch_embed", "block0", "block1", "block2", "block11", "neck"):
        original.check(f"S{size}.{stage}", found[stage])
