import pytest
import torch
from torch.nn import functional as F

from medplan.errors import CheckpointError, MethodError
from medplan.networks.mit import SIZES, MitSize, MixTransformer, adapt_stem, from_published, load_encoder
from medplan.networks.mlp_head import MlpHead

TINY = MitSize(widths=(8, 16, 20, 16), depths=(1, 1, 1, 1))


def published_state(encoder):
    """The encoder's weights under the names of the SegFormer release."""
    parts = {"query": "q", "memory": "kv", "output": "proj", "reduction": "sr", "reduction_norm": "norm"}
    mlp = {"expand": "fc1", "depthwise": "dwconv.dwconv", "reduce": "fc2"}
    state = {}
    for name, value in encoder.state_dict().items():
        _, stage, *rest = name.split(".")
        number = int(stage) + 1
        if rest[0] == "embedding":
            layer = {"projection": "proj", "norm": "norm"}[rest[1]]
            state[f"patch_embed{number}.{layer}.{rest[2]}"] = value
        elif rest[0] == "norm":
            state[f"norm{number}.{rest[1]}"] = value
        else:
            _, block, part, *layer = rest
            if part == "attention":
                layer[0] = parts[layer[0]]
            elif part == "feed_forward":
                layer[0] = mlp[layer[0]]
            short = {"attention": "attn.", "feed_forward": "mlp."}.get(part, f"{part}.")
            state[f"block{number}.{block}.{short}{'.'.join(layer)}"] = value
    return state


@pytest.mark.parametrize("height, width", [(64, 64), (50, 43), (29, 97)])
def test_maps_have_a_quarter_to_a_thirty_second_of_any_size(height, width):
    maps = MixTransformer(TINY)(torch.rand(2, 3, height, width))
    for features, channels, stride in zip(maps, TINY.widths, (4, 8, 16, 32), strict=True):
        assert features.shape == (2, channels, -(-height // stride), -(-width // stride))


def test_a_picture_that_is_too_small_is_refused():
    with pytest.raises(MethodError, match="29 pixels"):
        MixTransformer(TINY)(torch.rand(1, 3, 28, 64))


def test_unknown_size_is_refused_with_the_nearest_name():
    with pytest.raises(MethodError, match="did you mean"):
        MixTransformer("mit_bo")


@torch.no_grad()
def test_release_names_and_wrapped_names_load_strictly():
    source, target = MixTransformer(TINY).eval(), MixTransformer(TINY).eval()
    state = published_state(source)
    image = torch.rand(1, 3, 40, 40)
    for prefix in ("", "backbone.", "module.backbone."):
        extra = {"decode_head.linear_pred.bias": torch.zeros(3), "head.weight": torch.zeros(3, 3)}
        load_encoder(target, {prefix + name: value for name, value in state.items()} | extra, where="file")
        for one, other in zip(source(image), target(image), strict=True):
            assert torch.equal(one, other)


def test_transformers_names_are_translated_and_key_and_value_joined():
    state = {
        "segformer.encoder.patch_embeddings.0.proj.weight": torch.zeros(1),
        "segformer.encoder.patch_embeddings.3.layer_norm.bias": torch.zeros(1),
        "segformer.encoder.block.1.2.attention.self.query.weight": torch.zeros(1),
        "segformer.encoder.block.1.2.attention.self.key.weight": torch.zeros(2, 2),
        "segformer.encoder.block.1.2.attention.self.value.weight": torch.ones(2, 2),
        "segformer.encoder.block.1.2.attention.self.sr.bias": torch.zeros(1),
        "segformer.encoder.block.0.0.attention.self.layer_norm.bias": torch.zeros(1),
        "segformer.encoder.block.0.0.attention.output.dense.bias": torch.zeros(1),
        "segformer.encoder.block.0.0.layer_norm_2.bias": torch.zeros(1),
        "segformer.encoder.block.0.0.mlp.dense2.bias": torch.zeros(1),
        "segformer.encoder.block.0.0.mlp.dwconv.dwconv.bias": torch.zeros(1),
        "segformer.encoder.layer_norm.3.bias": torch.zeros(1),
        "classifier.bias": torch.zeros(1000),
    }
    renamed = from_published(state)
    assert set(renamed) == {
        "stages.0.embedding.projection.weight",
        "stages.3.embedding.norm.bias",
        "stages.1.blocks.2.attention.query.weight",
        "stages.1.blocks.2.attention.memory.weight",
        "stages.1.blocks.2.attention.reduction.bias",
        "stages.0.blocks.0.attention.reduction_norm.bias",
        "stages.0.blocks.0.attention.output.bias",
        "stages.0.blocks.0.norm2.bias",
        "stages.0.blocks.0.feed_forward.reduce.bias",
        "stages.0.blocks.0.feed_forward.depthwise.bias",
        "stages.3.norm.bias",
    }
    memory = renamed["stages.1.blocks.2.attention.memory.weight"]
    assert memory[:2].sum() == 0 and memory[2:].min() == 1


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda state: state.pop("norm1.weight"), r"missing: stages\.0\.norm\.weight"),
        (lambda state: state.update({"extra.weight": torch.zeros(1)}), r"unknown: extra\.weight"),
        (lambda state: state.update({"norm1.weight": torch.zeros(9)}), r"\(9,\) instead of \(8,\)"),
    ],
)
def test_weights_that_do_not_fit_are_refused_and_change_nothing(spoil, message):
    encoder = MixTransformer(TINY)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    state = published_state(MixTransformer(TINY))
    spoil(state)
    with pytest.raises(CheckpointError, match=message):
        load_encoder(encoder, state, where="mit_b0.pth")
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


@torch.no_grad()
def test_a_stem_for_more_channels_answers_to_grey_as_the_rgb_stem_does():
    kernel, grey = torch.rand(4, 3, 7, 7), torch.rand(1, 1, 20, 20)
    wide = adapt_stem(kernel, 5)
    assert wide.shape == (4, 5, 7, 7)
    torch.testing.assert_close(
        F.conv2d(grey.expand(-1, 5, -1, -1), wide),
        F.conv2d(grey.expand(-1, 3, -1, -1), kernel),
        rtol=1e-4,
        atol=1e-4,
    )
    assert adapt_stem(kernel, 3) is kernel


def test_drop_path_keeps_the_mean_and_is_off_outside_training():
    encoder = MixTransformer(MitSize(widths=(8, 8, 10, 8), depths=(1, 1, 1, 1)), drop_path=0.5)
    block = encoder.stages[3].blocks[0].train()
    branch = torch.ones(4000, 1, 1)
    kept = block._keep(branch)
    assert set(kept.unique().tolist()) == {0.0, 2.0} and abs(float(kept.mean()) - 1) < 0.1
    assert torch.equal(block.eval()._keep(branch), branch)


@torch.no_grad()
def test_head_equals_fusing_the_enlarged_maps():
    head = MlpHead((4, 6, 5, 3), 2, hidden=8).eval()
    maps = [torch.rand(2, width, size, size) for width, size in zip((4, 6, 5, 3), (9, 5, 3, 2), strict=True)]
    enlarged = [
        F.interpolate(
            projection(features.flatten(2).mT).mT.unflatten(2, features.shape[2:]),
            size=(9, 9),
            mode="bilinear",
            align_corners=False,
        )
        for features, projection in zip(maps, head.projections, strict=True)
    ]
    fused = head.fusion(torch.cat(enlarged[::-1], 1))
    torch.testing.assert_close(head(maps), head.classifier(F.relu(head.norm(fused))))


def test_number_of_parameters_is_the_published_one():
    with torch.device("meta"):
        counts = {size: sum(p.numel() for p in MixTransformer(size).parameters()) for size in SIZES}
    assert counts["mit_b0"] == 3_319_392 and counts["mit_b5"] == 81_443_008
    assert list(counts.values()) == sorted(counts.values())
