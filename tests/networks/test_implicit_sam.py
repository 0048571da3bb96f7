"""The laws of the adapters around SAM, of its loading, and of the frequency branch."""

import pytest
import torch

from medplan.errors import CheckpointError, MethodError
from medplan.networks.frequency_adapter import spectrum
from medplan.networks.implicit_sam import MAP_CHANNELS, AdaptedEncoder, as_sam_sees, build_imedsam
from medplan.networks.released_imedsam import is_released, released_state
from medplan.networks.sam import SAM_VARIANTS, build_sam_image_encoder

SIDE = 32


def build(*, side=SIDE, classes=1, **changes):
    torch.manual_seed(0)
    return build_imedsam("tiny", side, classes, **changes).eval()


def sam_file(side):
    """A file as SAM's authors publish them, built for some size."""
    torch.manual_seed(5)
    network = build(side=side, rank=0, hidden=0)
    state = {}
    for name, value in network.state_dict().items():
        if name.startswith("decoder."):
            continue
        value = torch.randn_like(value) if value.is_floating_point() else value
        state[name.replace("encoder.vit.", "image_encoder.") if name.startswith("encoder.") else name] = value
    return state


def test_adapters_change_nothing_before_training_but_the_frequency_branch_does():
    image = torch.rand(2, 3, SIDE, SIDE)
    plain = build_sam_image_encoder("tiny", SIDE).eval()
    with torch.no_grad():
        for hidden, same in ((0, True), (4, False)):
            adapted = AdaptedEncoder("tiny", SIDE, hidden=hidden).eval()
            state = {k.replace(".qkv.", ".qkv.qkv."): v for k, v in plain.state_dict().items()}
            assert not adapted.vit.load_state_dict(state, strict=False).unexpected_keys
            assert torch.allclose(adapted(image)[0], plain(image), atol=1e-5) == same


def test_gate_multiplies_the_update():
    network = AdaptedEncoder("tiny", SIDE, hidden=0)
    (first, *_) = network.attention
    torch.nn.init.ones_(first.query_up.weight)
    tokens = torch.rand(2, 3, 3, 128)
    with torch.no_grad():
        gate = first.gate(tokens.mean((1, 2)))[:, None, None]
        changed = first(tokens) - first.qkv(tokens)
        assert torch.allclose(changed[..., :128], gate * first.query_up(first.query_down(tokens)), atol=1e-5)
        assert not changed[..., 128:].any()


def test_only_adapters_prompts_upscaling_and_decoder_are_trained_beside_published_weights():
    network = build()
    listed = {id(p) for group in network.adapter_groups().values() for p in group}
    names = {name for name, parameter in network.named_parameters() if id(parameter) in listed}
    assert not any(".qkv.qkv." in name or ".norm" in name for name in names if name.startswith("encoder."))
    assert not any(name.startswith("mask_decoder.transformer") for name in names)
    assert {name.split(".")[0] for name in names} == {"encoder", "prompt_encoder", "mask_decoder", "decoder"}


@pytest.mark.parametrize("from_nothing", [False, True])
def test_without_published_weights_every_parameter_that_matters_is_trained(from_nothing):
    network = build(from_nothing=from_nothing)
    used = {id(p) for p in network.used_parameters()}
    maps = network.encoder(torch.rand(1, 3, SIDE, SIDE))
    coarse, fine = network.at_points(maps, torch.tensor([[2.0, 3.0, 20.0, 18.0]]), (8, 8), [0])
    (coarse.sum() + fine.sum()).backward()
    for name, parameter in network.named_parameters():
        assert (parameter.grad is not None) == (id(parameter) in used), name


@pytest.mark.parametrize("side", [32, 48])
def test_a_published_file_loads_strictly_at_another_size(side):
    network, file = build(side=side), sam_file(64)
    network.load_sam(file, where="file")
    state = network.state_dict()
    assert torch.equal(state["encoder.vit.neck.0.weight"], file["image_encoder.neck.0.weight"])
    assert torch.equal(
        state["encoder.vit.blocks.1.attn.qkv.qkv.weight"], file["image_encoder.blocks.1.attn.qkv.weight"]
    )
    assert torch.equal(state["mask_decoder.mask_tokens.weight"], file["mask_decoder.mask_tokens.weight"])
    del file["mask_decoder.iou_token.weight"]
    with pytest.raises(CheckpointError, match=r"missing: iou_token\.weight"):
        network.load_sam(file, where="file")


def released_names(depth):
    """Names and shapes as in the authors' checkpoints, for an encoder of some depth."""
    network = build(compat=True)
    backwards = {}
    for name, value in network.state_dict().items():
        parts = name.split(".")
        if ".attn.qkv." in name and "qkv.qkv" not in name:
            block, kind = int(parts[3]), parts[6]
            if kind == "gate":
                backwards[f"w_g_{block:03d}"] = value
            else:
                which, way = kind.split("_")
                index = 2 * block + (which == "value")
                backwards[f"w_{'a' if way == 'down' else 'b'}_{index:03d}"] = value
        elif name.startswith("encoder.frequency."):
            kind = {"norm": "freq_norm", "down": "freq_adapter.D_fc1", "up": "freq_adapter.D_fc2"}[parts[3]]
            backwards[f"image_encoder.blocks.{parts[2]}.{kind}.{parts[4]}"] = value
        elif name.startswith("decoder."):
            number = ("coarse", "fine", "coarse_heads", "fine_heads").index(parts[1])
            rest = parts[2:] if number != 2 else [parts[2], "0", *parts[3:]]
            backwards[".".join(["mask_decoder.seg_field.seg_net", str(number), *rest])] = value
        elif not name.startswith("encoder."):
            backwards[name] = value
    assert depth == SAM_VARIANTS["tiny"].depth
    return {name: torch.randn_like(v) if v.is_floating_point() else v for name, v in backwards.items()}


def test_released_adapters_load_by_their_names_and_leave_the_encoder():
    file = released_names(4)
    assert is_released(file) and not is_released(sam_file(32))
    network = build(compat=True)
    before = network.state_dict()["encoder.vit.blocks.0.mlp.lin1.weight"].clone()
    network.load_released(file, where="file")
    state = network.state_dict()
    assert torch.equal(state["encoder.vit.blocks.0.mlp.lin1.weight"], before)
    for name, value in released_state(file).items():
        assert torch.equal(state[name], value), name
    with pytest.raises(CheckpointError, match="'w_x_000' is not a tensor"):
        released_state({"w_x_000": torch.zeros(1)})
    with pytest.raises(MethodError, match=r"config\.compat=true"):
        build().load_released(file, where="file")


@pytest.mark.parametrize("compat", [False, True])
def test_spectrum_is_bounded_and_does_not_move_with_the_image(compat):
    image = torch.rand(2, 3, 32, 48)
    picture = spectrum(image, compat=compat)
    assert picture.shape == (2, 1, 32, 48)
    assert picture.amin() >= 0 and picture.amax() <= 1
    assert torch.allclose(picture, spectrum(image.roll((5, 7), (2, 3)), compat=compat), atol=1e-4)
    assert (picture[:, 0, 16, 24] == 1).all(), "the zero frequency lies in the middle"


def test_spectrum_survives_black_constant_and_half_precision_images():
    single = torch.zeros(1, 3, 32, 32)
    single[..., 4, 5] = 1
    for image in (torch.zeros(1, 3, 32, 32), torch.full((1, 3, 32, 32), 0.5), single):
        assert spectrum(image).isfinite().all()
        assert spectrum(image.half()).isfinite().all()
    assert torch.equal(spectrum(torch.zeros(1, 3, 32, 32)), torch.zeros(1, 1, 32, 32))
    assert spectrum(torch.zeros(1, 3, 32, 32), compat=True).isnan().all(), "as released"


def test_logarithms_show_more_than_the_zero_frequency():
    image = torch.rand(1, 3, 64, 64)
    assert spectrum(image, compat=True).flatten().topk(2).values[1] < 0.05
    assert spectrum(image).mean() > 0.2


def test_one_two_and_three_channels_become_three():
    image = torch.rand(2, 3, 4, 4)
    assert torch.equal(as_sam_sees(image, normalised=False), image)
    assert torch.equal(as_sam_sees(image[:, :1], normalised=False), image[:, :1].expand(-1, 3, -1, -1))
    two = as_sam_sees(image[:, :2], normalised=False)
    assert torch.allclose(two[:, 2], image[:, :2].mean(1))
    mean = torch.tensor([123.675, 116.28, 103.53])[:, None, None] / 255
    assert torch.allclose(as_sam_sees(mean.expand(1, 3, 2, 2)), torch.zeros(1, 3, 2, 2), atol=1e-6)


@pytest.mark.parametrize(("from_nothing", "stride"), [(False, 4), (True, 2)])
def test_the_answer_depends_on_the_box(from_nothing, stride):
    network = build(from_nothing=from_nothing)
    with torch.no_grad():
        maps = network.encoder(torch.rand(1, 3, SIDE, SIDE))
        one = network.upscaled(maps, torch.tensor([[0.0, 0.0, 32.0, 32.0]]))
        two = network.upscaled(maps, torch.tensor([[4.0, 4.0, 12.0, 9.0]]))
    assert not torch.allclose(one, two, atol=1e-4)
    assert one.shape == (1, MAP_CHANNELS, SIDE // stride, SIDE // stride)


def test_finer_maps_take_part_where_nothing_is_published():
    network = build(from_nothing=True)
    box = torch.tensor([[4.0, 4.0, 12.0, 9.0]])
    with torch.no_grad():
        embedding, *finer = network.encoder(torch.rand(1, 3, SIDE, SIDE))
        assert [each.shape[-1] for each in finer] == [SIDE // 2, SIDE // 4, SIDE // 8]
        before = network.upscaled((embedding, *finer), box)
        for number in range(3):
            changed = [each + (place == number) for place, each in enumerate(finer)]
            changed[number][..., 0, 0] += 5
            assert not torch.allclose(network.upscaled((embedding, *changed), box), before, atol=1e-4)
    assert len(AdaptedEncoder("vit_b", SIDE)(torch.rand(1, 3, SIDE, SIDE))) == 1
