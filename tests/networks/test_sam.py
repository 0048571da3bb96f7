"""The SAM encoder at other sizes than it was published for."""

import pytest
import torch

from medplan.errors import CheckpointError, MethodError
from medplan.networks.sam import (
    SAM_VARIANTS,
    SamVariant,
    build_sam_image_encoder,
    load_sam_image_encoder,
    resize_position_tables,
)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    variant = SamVariant(width=24, depth=2, heads=2, global_blocks=(1,))
    monkeypatch.setitem(SAM_VARIANTS, "tiny", variant)


@pytest.mark.parametrize("size", [32, 48, 128])
def test_output_is_a_sixteenth_of_any_multiple_of_sixteen(size):
    encoder = build_sam_image_encoder("tiny", size)
    assert encoder(torch.rand(1, 3, size, size)).shape == (1, 256, size // 16, size // 16)


def test_vit_b_has_the_published_number_of_parameters():
    for size, count in ((128, 86_516_992), (1024, 89_670_912)):
        with torch.device("meta"):
            encoder = build_sam_image_encoder("vit_b", size)
        assert sum(parameter.numel() for parameter in encoder.parameters()) == count


def test_a_published_file_loads_at_another_size_and_other_parts_of_it_are_left_out():
    torch.manual_seed(0)
    source, target = build_sam_image_encoder("tiny", 64), build_sam_image_encoder("tiny", 32)
    torch.nn.init.normal_(source.pos_embed)
    file = {f"image_encoder.{name}": tensor for name, tensor in source.state_dict().items()}
    load_sam_image_encoder(target, {**file, "mask_decoder.x": torch.zeros(1)}, where="file")
    assert torch.equal(target.neck[0].weight, source.neck[0].weight)
    assert torch.allclose(target.pos_embed.mean(), source.pos_embed.mean(), atol=0.05)


def test_tables_of_equal_size_are_not_touched_and_constant_ones_stay_constant():
    source, target = build_sam_image_encoder("tiny", 64), build_sam_image_encoder("tiny", 96)
    state = source.state_dict()
    assert all(resize_position_tables(state, source)[name] is state[name] for name in state)
    torch.nn.init.constant_(source.blocks[1].attn.rel_pos_h, 3.0)
    resized = resize_position_tables(source.state_dict(), target)
    assert torch.equal(resized["blocks.1.attn.rel_pos_h"], torch.full((11, 12), 3.0))


def test_a_file_without_an_encoder_and_sizes_that_do_not_fit_are_refused():
    with pytest.raises(CheckpointError, match="no SAM image encoder"):
        load_sam_image_encoder(build_sam_image_encoder("tiny", 32), {"x": torch.zeros(1)}, where="file")
    with pytest.raises(CheckpointError, match="missing"):
        load_sam_image_encoder(
            build_sam_image_encoder("tiny", 32), {"pos_embed": torch.zeros(1, 2, 2, 24)}, where="file"
        )
    with pytest.raises(MethodError, match="multiple of 16, not 100; try 96"):
        build_sam_image_encoder("vit_b", 100)
    with pytest.raises(MethodError, match="did you mean 'vit_b'"):
        build_sam_image_encoder("vitb", 128)
