"""With equal weights, every stage of the network equals the original's, in float64."""

import re

import pytest
import torch

from medplan.networks.frequency_adapter import spectrum
from medplan.networks.implicit import CoordinateCode, num_open, pixel_positions
from medplan.networks.implicit_sam import build_imedsam
from medplan.networks.sam import build_sam_image_encoder, load_sam_image_encoder

BOX = torch.tensor([[70.0, 52.0, 301.0, 262.0]])
"""First and last pixel inside; the network's boxes end after the last."""
LAST = torch.tensor([0.0, 0.0, 1.0, 1.0])
GRIDS = [(384, 384), (128, 128), (96, 160)]


def build(num_classes=1):
    return build_imedsam("vit_b", 384, num_classes, compat=True)


def filled(original):
    """The network with the original's weights, which reach it as its authors' file and SAM's would."""
    network = build()
    released = {
        entry["name"]: original.fill(entry["state_dict_name"], *entry["shape"])
        for entry in original.description["checkpoint_308"]
    }
    names = {
        name.removeprefix("sam."): (name, shape)
        for name, shape in original.shapes().items()
        if re.match(r"sam\.image_encoder\.(?!.*(lora|w_gate|freq_))", name)
    }
    vit = {
        name.replace("qkv.qkv", "qkv"): original.fill(full, *shape) for name, (full, shape) in names.items()
    }
    network.encoder.load({name: value.float() for name, value in vit.items()}, where="reference")
    network.load_released({name: value.float() for name, value in released.items()}, where="reference")
    network.double().eval()
    # The random matrix stays as the original has it: positional codes are float32 there.
    network.prompt_encoder.pe_layer.float()
    return network


@pytest.fixture
def case(reference):
    """The filled network and what its stages gave, computed once per seed."""
    original = reference("imedsam")
    if original.seed not in _KEPT:
        _KEPT[original.seed] = (filled(original), {})
    network, found = _KEPT[original.seed]
    return original, network, found


_KEPT = {}  # by seed: filling 92 million weights takes seconds


def run_encoder(original, network, found):
    if "encoder" in found:
        return found["encoder"]
    tokens, waves = {}, {}
    handles = []
    for number, (block, adapter) in enumerate(
        zip(network.encoder.vit.blocks, network.encoder.frequency, strict=True)
    ):
        if number == 0:
            handles.append(block.register_forward_pre_hook(lambda _, x: tokens.update(start=x[0])))
            handles.append(adapter.register_forward_pre_hook(lambda _, x: waves.update(start=x[0])))
        handles.append(block.register_forward_hook(lambda _, __, y, n=number: tokens.update({n: y})))
        handles.append(adapter.register_forward_hook(lambda _, __, y, n=number: waves.update({n: y})))
    image = original.image("imedsam/image", 1, 3, 384, 384)
    with torch.no_grad():
        (found["encoder"],) = network.encoder(image)
    for handle in handles:
        handle.remove()
    found["tokens"], found["waves"] = tokens, waves
    return found["encoder"]


def upscaled(original, network, found):
    if "map" not in found:
        with torch.no_grad():
            found["map"] = network.upscaled((run_encoder(original, network, found),), BOX + LAST)
    return found["map"]


def test_parameters_are_counted_as_the_original_counts_them():
    with torch.device("meta"):
        groups, several = build().adapter_groups(), build(13).adapter_groups()

    def count(group):
        return sum(parameter.numel() for parameter in group)

    assert {name: count(group) for name, group in groups.items()} == {
        "encoder adapters": 156_672 + 82_992,
        "prompt encoder": 6_220,
        "upscaling": 73_952,
        "implicit decoder": 1_275_906,
    }
    assert sum(map(count, groups.values())) == 1_595_742
    assert sum(map(count, several.values())) == 3_577_206


@torch.no_grad()
def test_spectrum_equals_the_original(reference):
    original = reference("imedsam")
    found = spectrum(original.image("imedsam/image", 1, 3, 384, 384), compat=True)[0, 0]
    original.check("spectrum", found)
    original.check("spectrum_centre", found[184:201, 184:201])


def test_coordinate_code_equals_the_original(reference):
    original = reference("imedsam")
    code = CoordinateCode(compat=True)(pixel_positions((5, 7), torch.arange(35), corners=True))
    for openness in (1, 0.5, 0.1):
        opened = code.clone()
        opened[:, num_open(openness) :] = 0
        original.check(f"coord_code.5x7.T{openness}", opened.view(5, 7, 63))


def test_position_tables_are_resized_as_in_the_original(reference):
    original = reference("imedsam")
    state = build_sam_image_encoder("vit_b", 1024).state_dict()
    names = {
        "pos_embed": "resize.pos_embed",
        "blocks.2.attn.rel_pos_h": "resize.rel_pos_h_block2",
        "blocks.11.attn.rel_pos_w": "resize.rel_pos_w_block11",
    }
    for name in names:
        state[name] = original.fill(f"resize/image_encoder.{name}", *state[name].shape).float()
    encoder = build_sam_image_encoder("vit_b", 384)
    load_sam_image_encoder(encoder, state, where="reference")
    for name, stored in names.items():
        original.check(stored, encoder.state_dict()[name])


@pytest.mark.slow
@torch.no_grad()
def test_encoder_equals_the_original(case):
    original, _, found = case
    original.check("encoder", run_encoder(*case))
    waves, tokens = found["waves"], found["tokens"]
    original.check("freq_tokens_0", waves["start"])
    original.check("tokens_0", tokens["start"])
    for number in (0, 2, 11):
        original.check(f"block{number}.freq_tokens", waves[number])
        original.check(f"block{number}.tokens", tokens[number] + 0.5 * waves[number])


@pytest.mark.slow
@torch.no_grad()
def test_trunk_equals_the_original(case):
    original, network, _ = case
    original.check("upscaled", upscaled(*case))
    sparse, dense = network.prompt_encoder(points=None, boxes=BOX, masks=None)
    original.check("prompt_sparse", sparse)
    original.check("prompt_dense", dense)
    original.check("dense_pe", network.positional()[None])


@pytest.mark.slow
@pytest.mark.parametrize("grid", GRIDS)
@torch.no_grad()
def test_decoder_equals_the_original(case, grid):
    original, network, _ = case
    decoder, name = network.decoder, f"{grid[0]}x{grid[1]}"
    maps = upscaled(*case), network.positional().double()
    decoder.share = 1.0
    coarse = torch.empty(grid[0] * grid[1], dtype=torch.float64)
    fine = coarse.clone()
    for index in torch.arange(len(coarse)).split(16_384):
        points = decoder.features(*maps, grid, index)
        output = decoder.coarse_output(points, [0])
        coarse[index] = output[0, :, 0]
        fine[index] = decoder.fine_output(torch.cat([points, output[..., 1:]], dim=-1), [0])[0]
    original.check(f"coarse.{name}", coarse.view(1, 1, *grid))
    original.check(f"fine_all.{name}", fine.view(1, 1, *grid))
    composed = coarse.clone()
    for start, stop in original.arrays[f"selected_runs.{name}"]:
        composed[start:stop] = fine[start:stop]
    original.check(f"fine.{name}", composed.view(1, 1, *grid))
    decoder.share = 0.125


@pytest.mark.slow
@torch.no_grad()
def test_points_and_openness_equal_the_original(case):
    original, network, _ = case
    decoder = network.decoder
    maps = upscaled(*case), network.positional().double()
    points = decoder.features(*maps, (5, 7), torch.arange(35))
    original.check("point_features.5x7", points[0])
    index = torch.arange(96 * 160)
    output = decoder.coarse_output(decoder.features(*maps, (96, 160), index), [0])
    original.check("head_features.96x160", output[0])
    output = decoder.coarse_output(decoder.features(*maps, (96, 160), index, openness=0.1), [0])
    original.check("coarse.96x160.T0.1", output[..., 0].view(1, 1, 96, 160))
