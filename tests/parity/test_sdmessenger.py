"""Mix Transformer, all-MLP head, messenger and losses equal the original's numbers, in float64."""

import pytest
import torch

from medplan.networks.messenger import Messenger, Messengers
from medplan.networks.mit import MixTransformer, load_encoder
from medplan.networks.mlp_head import MlpHead
from medplan.networks.segformer import MessengerSegFormer, messenger_from_published, whole_from_published


def build(size, stages, *, shares_batch=False):
    encoder = MixTransformer(size, drop_path=0.0)
    messengers = Messengers(
        {str(s - 1): Messenger(encoder.widths[s - 1], dropout=0.0, shares_batch=shares_batch) for s in stages}
    )
    head = MlpHead(encoder.widths, 14, dropout=0.0)
    return MessengerSegFormer(encoder, head, messengers)


def set_sharing(network, shares_batch):
    for module in network.modules():
        if isinstance(module, Messenger):
            module.shares_batch = shares_batch


@pytest.mark.parametrize("size", ["b0", pytest.param("b5", marks=pytest.mark.slow)])
@torch.no_grad()
def test_encoder_equals_the_original(reference, size):
    original = reference(f"sdm_mit_{size}")
    encoder = MixTransformer(f"mit_{size}").eval()
    load_encoder(encoder, original.state("encoder"), where="reference")
    encoder.double()
    for letter in "ab":
        maps = encoder(original.input(f"sdm_image_{letter}"))
        for stage, features in enumerate(maps, start=1):
            original.check(f"{letter}_stage{stage}", features)


@pytest.mark.parametrize("width", [64, 256])
@torch.no_grad()
def test_messenger_equals_the_original(reference, width):
    original = reference("sdm_messenger_unit")
    messenger = Messenger(width, dropout=0.0).double()
    messenger.load_state_dict(messenger_from_published(original.state(f"u2l{width}")))
    for number in (1, 2, 3):
        features = 2 * original.input(f"u2l{width}_feature_{number}") - 1
        original.check(f"u2l{width}_train_{number}", messenger(features, number))
    features = 2 * original.input(f"u2l{width}_feature_2") - 1
    original.check(f"u2l{width}_eval_single", messenger(features))
    messenger.shares_batch = True
    original.check(f"u2l{width}_eval_batch4", messenger(features))


@pytest.mark.parametrize(
    "model",
    [
        "sdm_full_b0_s4",
        "sdm_full_b0_s1234",
        pytest.param("sdm_full_b5_s4", marks=pytest.mark.slow),
        pytest.param("sdm_full_b5_s1234", marks=pytest.mark.slow),
    ],
)
@torch.no_grad()
def test_whole_network_equals_the_original(reference, model):
    original = reference(model)
    stages = [int(digit) for digit in model.rpartition("_s")[2]]
    network = build(f"mit_{model.split('_')[2]}", stages).double().eval()
    network.load_state_dict(whole_from_published(original.state("net")))

    def logits(images, num_labelled=None):
        return network(images.unsqueeze(2), num_labelled)[0].squeeze(2)

    exchanged = {}
    for stage, messenger in network.messengers.items():
        messenger.register_forward_hook(lambda _, __, output, stage=stage: exchanged.update({stage: output}))
    for letter in "ab":
        images = original.input(f"sdm_image_{letter}")
        original.check(f"{letter}_eval_single_logits", logits(images))
        set_sharing(network, True)
        original.check(f"{letter}_eval_logits", logits(images))
        original.check(f"{letter}_eval_stage4", exchanged["3"])
        set_sharing(network, False)
    original.check("train_logits", logits(original.input("sdm_train"), 2))
    for stage in stages:
        original.check(f"train_messenger_stage{stage}", exchanged[str(stage - 1)])
