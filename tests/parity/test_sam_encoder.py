"""The SAM image encoder, built for small images, equals the original's numbers, in float64."""

import pytest
import torch

from medplan.networks.sam import build_sam_image_encoder, load_sam_image_encoder


@pytest.mark.parametrize("size", [128, pytest.param(160, marks=pytest.mark.slow)])
@torch.no_grad()
def test_image_encoder_equals_the_original(reference, size):
    original = reference("sam_encoder")
    encoder = build_sam_image_encoder("vit_b", size).eval()
    load_sam_image_encoder(encoder, original.state(key=f"state_dict_{size}"), where="reference")
    encoder.double()
    seen = {}
    for number in (0, 1, 2, 11):
        encoder.blocks[number].register_forward_hook(
            lambda module, inputs, output, number=number: seen.update({f"block{number}": output})
        )
    encoder.patch_embed.register_forward_hook(lambda module, i, output: seen.update(patch_embed=output))
    seen["neck"] = encoder(original.image("sam_encoder/image", 1, 3, size, size))
    for name, value in seen.items():
        original.check(f"S{size}.{name}", value)
