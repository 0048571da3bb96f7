"""Encoder, decoders, losses and one bi-level iteration equal the original's numbers, in float64."""

import pytest
import torch
from torch.nn import functional as F

from medplan.learning.registration import agreement, local_correlation, smoothness
from medplan.method import Progress
from medplan.networks.encoders import build_network
from medplan.networks.joint import UNetEncoder, from_published
from medplan.networks.warp import warp
from tests.methods.bijros_case import FixedNorm, Recorder, tiny_bijros

NUM_OUTPUTS = 14


def network_of(original):
    network = build_network(UNetEncoder(), NUM_OUTPUTS)
    network.load_state_dict(from_published(original.state()))
    return network.double().eval()


def test_every_published_tensor_has_a_place(reference):
    original = reference("bijros")
    network = build_network(UNetEncoder(), NUM_OUTPUTS)
    renamed = from_published(original.state())
    assert len(renamed) == original.description["parameters"]["state_dict_tensors"]
    assert renamed.keys() == network.state_dict().keys()
    for part, published in (
        ("encoder", "fea_extractor"),
        ("registration", "Reg_Decoder"),
        ("segmentation", "Seg_Decoder"),
    ):
        count = sum(p.numel() for p in getattr(network, part).parameters())
        assert count == original.description["parameters"][published]


@pytest.mark.parametrize("size", [(32, 32, 32), pytest.param((48, 32, 40), marks=pytest.mark.slow)])
@torch.no_grad()
def test_encoder_flows_and_logits_equal_the_original(reference, size):
    original = reference("bijros")
    network, name = network_of(original), "fwd." + "x".join(map(str, size))
    maps = {}
    for letter in "xy":
        maps[letter] = network.encode(original.image(f"bijros/{letter}", 1, 1, *size))
        for level, features in enumerate(maps[letter], start=1):
            original.check(f"{name}.enc_{letter}.e{level}", features)
        original.check(f"{name}.logits_{letter}", network.segment(maps[letter], size))
    original.check(f"{name}.flow_xy", network.flow(maps["x"], maps["y"], size))
    original.check(f"{name}.flow_yx", network.flow(maps["y"], maps["x"], size))


@pytest.mark.parametrize("mode", ["linear", "nearest"])
def test_the_corner_aligned_warp_equals_the_reference(reference, mode):
    original = reference("bijros")
    volume = original.image("bijros/warp_volume", 1, 2, 24, 20, 28)
    flow = torch.from_numpy(original.arrays["warp.flow"]).double()
    name = {"linear": "bilinear", "nearest": "nearest"}[mode]
    original.check(f"warp.warp_ref.{name}", warp(volume, flow, mode=mode))


def test_local_correlation_equals_the_original(reference):
    original = reference("bijros")
    first, second = (original.image(f"bijros/ncc_{name}", 1, 1, 24, 20, 28) for name in "IJ")
    mixed = (0.7 * first + 0.3 * second).requires_grad_()
    constant = torch.ones_like(first)
    found = {
        "IJ": local_correlation(first, second, compat=True),
        "IK": local_correlation(first, mixed, compat=True),
        "KI": local_correlation(mixed, first, compat=True),
        "II": local_correlation(first, first, compat=True),
    }
    for name, value in found.items():
        original.check(f"loss.ncc.{name}", value)
    # Of two constant images the original's float32 correlates noise inside, besides the padded border.
    noisy = local_correlation(0.3 * constant, 0.6 * constant, compat=True)
    original.check("loss.ncc.const", noisy, tolerance=0.1)
    original.check("loss.ncc.IK_gradK", torch.autograd.grad(found["IK"], mixed)[0])


def test_smoothness_and_agreement_equal_the_original(reference):
    original = reference("bijros")
    flow = (4 * original.image("bijros/loss_flow", 1, 3, 24, 20, 28) - 2).requires_grad_()
    original.check("loss.smooth.noise", smoothness(flow))
    original.check("loss.smooth.noise_grad", torch.autograd.grad(smoothness(flow), flow)[0])
    original.check("loss.smooth.warp_flow", smoothness(torch.from_numpy(original.arrays["warp.flow"])))
    shape = (2, NUM_OUTPUTS, 12, 10, 14)
    soft, other = ((4 * original.image(f"bijros/dice_{name}", *shape)).softmax(1) for name in "pq")
    soft.requires_grad_()
    codes = (11 * original.image("bijros/dice_label", 2, 12, 10, 14)).floor().long()
    hard = F.one_hot(codes, NUM_OUTPUTS).movedim(-1, 1).double()
    original.check("loss.dice.hard", agreement(soft, hard))
    original.check("loss.dice.hard_gradP", torch.autograd.grad(agreement(soft, hard), soft)[0])
    original.check("loss.dice.soft", agreement(soft, other))
    original.check("loss.dice.same", agreement(hard, hard))


@pytest.mark.parametrize(
    ("run", "shared"),
    [
        ("corner", True),
        ("corner_noA", False),
        pytest.param("corner", False, marks=pytest.mark.slow),
        pytest.param("corner_noA", True, marks=pytest.mark.slow),
        pytest.param("corner32", True, marks=pytest.mark.slow),
        pytest.param("corner32", False, marks=pytest.mark.slow),
    ],
)
def test_one_bilevel_iteration_equals_the_original(reference, run, shared):
    original = reference("bijros")
    side = 32 if run == "corner32" else 16
    # Rotation and scale off, and one blend for both steps, as when the references were made.
    config = {"window": 9, "blend": (0.8, 0.8), "degrees": 0.0, "scale": (1.0, 1.0), "compat": True}
    method = tiny_bijros(
        side=side, num_classes=NUM_OUTPUTS - 1, channels=(32, 64, 128, 256), shared_passes=shared, **config
    )
    method.network.load_state_dict(from_published(original.state()))
    method.double()
    FixedNorm.apply(method)
    x, y, label = (original.image(f"bijros/{name}", 1, 1, side, side, side) for name in ("x", "y", "x_seg"))
    batch = {"image": x, "unlabelled_image": y, "label": (14 * label[:, 0]).floor().short(), "case": ["a b"]}
    if not shared:
        batch |= {f"turned_{name}": value for name, value in batch.items() if name != "case"}
    update = Recorder(method.optimizers("bilevel"), steps=() if run != "corner" else ("seg",))
    logged = method.training_step(batch, update, Progress(phase="bilevel", step=0, num_steps=1))

    def check(name, value, tolerance):
        wanted = torch.from_numpy(original.arrays[f"bilevel.{run}.{name}"]).double()
        error = (value - wanted).abs() / wanted.abs().clamp_min(1e-12)
        assert float(error.max()) < tolerance, (name, float(error.max()))

    loose = 1e-4 if run == "corner" else 2e-5
    for ours, name in (
        ("lower", "A_phi_s"),
        ("registration", "phi_r"),
        ("segmentation", "phi_s"),
        ("factor", "c"),
    ):
        check(name, logged[ours].double(), loose)
    norms = {
        name: torch.stack([g.norm() for g in update.seen[name]]) for name in ("lower", "gr", "gs", "reg")
    }
    check("A_g_norm", norms["lower"], 1e-3)
    check("gr_norm", norms["gr"], 1e-3)
    check("gs_norm", norms["gs"], 1e-3)
    check("w_norm", norms["reg"], 1e-3)
    flow_weight = update.seen["reg"][-2]
    original.check(f"bilevel.{run}.w.Reg_Decoder.flow.weight", flow_weight, tolerance=None)
