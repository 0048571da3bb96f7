"""The SynthSeg encoder and its Keras weights."""

import pytest
import torch
from torch.nn import functional as F

from medplan.errors import CheckpointError
from medplan.networks.encoders import build_network
from medplan.networks.synthseg import SynthSegEncoder, load_synthseg_encoder


def keras_file(channels=(2, 4, 6, 8, 10)):
    """Weights by the names, and with the kernel order, of a Keras file; the expanding path too."""
    weights, inputs = {"unet_likelihood/unet_likelihood/kernel:0": torch.zeros(1)}, 1
    for level, width in enumerate(channels):
        for conv in range(2):
            name = f"unet_conv_downarm_{level}_{conv}"
            weights[f"{name}/{name}/kernel:0"] = 0.3 * torch.randn(3, 3, 3, inputs, width)
            weights[f"{name}/{name}/bias:0"] = torch.randn(width)
            inputs = width
        norm = f"unet_bn_down_{level}"
        weights[f"{norm}/{norm}/gamma:0"] = torch.rand(width) + 0.5
        weights[f"{norm}/{norm}/beta:0"] = torch.randn(width)
        weights[f"{norm}/{norm}/moving_mean:0"] = torch.randn(width)
        weights[f"{norm}/{norm}/moving_variance:0"] = torch.rand(width) + 0.5
    return weights


def test_it_has_the_published_number_of_parameters():
    with torch.device("meta"):
        encoder = SynthSegEncoder()
    count = sum(parameter.numel() for parameter in encoder.parameters())
    # 7,950,696 as published, of which the running statistics of batch norm are no parameters here.
    assert count in (7_950_696, 7_950_696 - 2 * 744)


@torch.no_grad()
def test_levels_are_what_keras_computes():
    torch.manual_seed(0)
    weights = keras_file()
    encoder = SynthSegEncoder(1, (2, 4, 6, 8, 10)).eval()
    load_synthseg_encoder(encoder, weights, where="file")
    encoder, weights = encoder.double(), {name: tensor.double() for name, tensor in weights.items()}
    x = torch.rand(1, 1, 32, 32, 32, dtype=torch.float64)
    maps = encoder(x)
    for level, features in enumerate(maps[:-1]):
        for conv in range(2):
            name = f"unet_conv_downarm_{level}_{conv}"
            kernel = weights[f"{name}/{name}/kernel:0"].permute(4, 3, 0, 1, 2)
            x = F.elu(F.conv3d(x, kernel, weights[f"{name}/{name}/bias:0"], padding=1))
        assert torch.allclose(features, x, atol=1e-4, rtol=1e-4), "the skip leaves before the batch norm"
        norm = f"unet_bn_down_{level}"
        part = {key: weights[f"{norm}/{norm}/{key}:0"].view(1, -1, 1, 1, 1) for key in ("gamma", "beta")}
        mean = weights[f"{norm}/{norm}/moving_mean:0"].view(1, -1, 1, 1, 1)
        variance = weights[f"{norm}/{norm}/moving_variance:0"].view(1, -1, 1, 1, 1)
        x = part["gamma"] * (x - mean) / (variance + 1e-3).sqrt() + part["beta"]
        x = F.max_pool3d(x, 2)


def test_files_with_something_missing_or_without_an_encoder_are_refused():
    weights, encoder = keras_file(), SynthSegEncoder(1, (2, 4, 6, 8, 10))
    del weights["unet_bn_down_3/unet_bn_down_3/beta:0"]
    with pytest.raises(CheckpointError, match=r"missing: levels\.3\.norm\.bias"):
        load_synthseg_encoder(encoder, weights, where="file")
    with pytest.raises(CheckpointError, match="no SynthSeg encoder"):
        load_synthseg_encoder(encoder, {"a": torch.zeros(1)}, where="file")


@pytest.mark.parametrize("size", [(20, 18, 16), (33, 32, 28)])
def test_sizes_that_are_no_multiple_of_sixteen_are_padded_and_cut_back(size):
    network = build_network(SynthSegEncoder(1, (2, 4, 6, 8, 10)), 3).eval()
    maps = network.encode(torch.rand(1, 1, *size))
    assert all(side % 16 == 0 for side in network.encoder.padded(size))
    assert network.segment(maps, size).shape == (1, 3, *size)
    assert network.flow(maps, maps, size).shape == (1, 3, *size)
