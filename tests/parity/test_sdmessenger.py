"""Mix Transformer, all-MLP head, messenger and losses equal the original's numbers, in float64."""

import pytest
import torch

from medplan.data.labels import IGNORE
from medplan.learning.difficulty import Difficulty, hard_dice
from medplan.learning.pseudo_labels import (
    paste_consistency,
    pseudo_label_loss,
    squared_dice_loss,
    weighted_cross_entropy,
)
from medplan.networks.messenger import Messenger, Messengers
from medplan.networks.mit import MixTransformer, load_encoder
from medplan.networks.mlp_head import MlpHead
from medplan.networks.segformer import MessengerSegFormer
from medplan.samples.paste import Boxes
from tests.parity.released_sdmessenger import messenger_from_published, whole_from_published


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


def loss_inputs(original):
    def blocks(name, classes):
        coarse = torch.floor(classes * original.image(name, 2, 6, 8)).long()
        return coarse.repeat_interleave(8, 1).repeat_interleave(8, 2)

    def logits(name):
        return (8 * original.input(name) - 4).unsqueeze(2).requires_grad_()

    label, pseudo = blocks("loss_label", 12), blocks("loss_pseudo", 14)
    return logits("loss_logits_labelled"), logits("loss_logits_unlabelled"), label, pseudo


def boxes(*corners):
    lower = [(0, y1, x1) for x1, y1, _, _ in corners]
    upper = [(1 if x2 > x1 else 0, y2, x2) for x1, _, x2, y2 in corners]
    return Boxes(lower_B3=torch.tensor(lower), upper_B3=torch.tensor(upper))


def test_losses_and_their_gradients_equal_the_original(reference):
    original = reference("sdm_losses")
    labelled, unlabelled, label, pseudo = loss_inputs(original)
    weights = original.input("loss_class_weight") + 0.1
    supervised = weighted_cross_entropy(labelled, label.unsqueeze(1), weights)
    original.check("weighted_ce", supervised.reshape(1))
    (gradient,) = torch.autograd.grad(supervised, labelled, retain_graph=True)
    original.check("weighted_ce_gradient", gradient.squeeze(2))
    against_pseudo = pseudo_label_loss(unlabelled, pseudo.unsqueeze(1))
    original.check("ce_unlabelled", weighted_cross_entropy(unlabelled, pseudo.unsqueeze(1)).reshape(1))
    original.check("dice_unlabelled", squared_dice_loss(unlabelled, pseudo.unsqueeze(1)).reshape(1))
    original.check("ce_dice", against_pseudo.reshape(1))
    (gradient,) = torch.autograd.grad(against_pseudo, unlabelled, retain_graph=True)
    original.check("ce_dice_gradient", gradient.squeeze(2))
    pasted = boxes((10, 4, 42, 20), (0, 0, 0, 0))
    agreement = paste_consistency(labelled, unlabelled, pasted.mask((1, 48, 64)))
    original.check("ours_consistency", agreement.reshape(1))
    (gradient,) = torch.autograd.grad(agreement, labelled, retain_graph=True)
    original.check("ours_consistency_gradient", gradient.squeeze(2))
    original.check("ours_total_after_warmup", ((supervised + against_pseudo + agreement) / 3).reshape(1))
    both = boxes((10, 4, 42, 20), (52, 30, 64, 48))
    original.check(
        "ours_consistency_two", paste_consistency(labelled, unlabelled, both.mask((1, 48, 64))).reshape(1)
    )


def test_released_slips_of_the_losses_come_back_with_compat(reference):
    original = reference("sdm_losses")
    labelled, unlabelled, _, pseudo = loss_inputs(original)
    for name, corners in (
        ("original_slip_consistency", ((10, 4, 42, 20), (0, 0, 0, 0))),
        ("original_slip_consistency_two", ((10, 4, 42, 20), (52, 30, 64, 48))),
    ):
        mask = boxes(*corners).transposed().mask((1, 48, 64))
        original.check(name, paste_consistency(labelled, unlabelled, mask).reshape(1))
    pseudo[:, :5] = IGNORE
    original.check("ce_255", weighted_cross_entropy(unlabelled, pseudo.unsqueeze(1)).reshape(1))
    original.check("dice_255", squared_dice_loss(unlabelled, pseudo.unsqueeze(1), compat=True).reshape(1))


@pytest.mark.parametrize("compat", [False, True])
def test_class_weights_equal_the_original(reference, compat):
    original = reference("sdm_losses")
    label = loss_inputs(original)[2]
    one_hot = torch.nn.functional.one_hot(label, 14).movedim(-1, 1)
    difficulty = Difficulty(14).double()
    dice, weights = [], []
    for number, share in enumerate((0.1, 0.35, 0.1, 0.35)):
        predicted = (original.input(f"diff_logits_{number}") + share * one_hot).argmax(1)
        dice.append(hard_dice(predicted, label, 14, compat=compat))
        weights.append(difficulty(dice[-1]))
    if compat:
        original.check("original_slip_difficulty_weights", torch.stack(weights))
        return
    original.check("ours_difficulty_dice", torch.stack(dice))
    original.check("ours_difficulty_weights", torch.stack(weights))
    perfect = hard_dice(label, label, 14)
    original.check("ours_difficulty_perfect_dice", perfect)
    original.check("ours_difficulty_perfect_weights", Difficulty(14).double()(perfect))
