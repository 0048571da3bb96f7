import pytest
import torch
from torch import nn

from medplan.errors import MethodError
from medplan.networks.exchange import Exchange, exchange_network
from medplan.networks.messenger import ChannelAttention, Messenger, Messengers
from medplan.plan.schema import Pyramid

PYRAMID = Pyramid(
    features=(4, 8),
    strides=((1, 1, 1), (2, 2, 2)),
    kernels=((3, 3, 3), (3, 3, 3)),
    blocks=(1, 1),
    decoder_blocks=(1,),
)


def naive_messenger(messenger, features, num_labelled):
    """Variant A written with loops over samples and heads, for two labelled and two unlabelled maps."""
    entered = nn.functional.gelu(messenger.enter(features.flatten(2).mT))
    tokens = messenger.norm_before(entered)
    width, heads = tokens.shape[2], messenger.heads

    def normalised_softmax(scores):
        return ((scores - scores.mean()) / (scores.var(correction=0) + 1e-5).sqrt()).softmax(-1)

    mixed = []
    unknown = tokens[num_labelled:]
    for sample in tokens[:num_labelled]:
        layers = messenger.labelled
        query = layers.query(sample).T
        key = torch.cat([layers.key(other).T for other in unknown])
        value = torch.cat([layers.value(other).T for other in unknown])
        mixed.append(layers.output((normalised_softmax(query @ key.T) @ value).T))
    for sample in unknown:
        layers = messenger.unlabelled
        rows = torch.zeros(len(sample), heads * width)
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            query, key, value = (layer(sample).T[part] for layer in (layers.query, layers.key, layers.value))
            rows[:, head::heads] = (normalised_softmax(query @ key.T) @ value).T
        mixed.append(layers.output(rows))
    left = messenger.leave(messenger.norm_after(torch.stack(mixed) + entered))
    return nn.functional.gelu(left).mT.reshape(features.shape)


@torch.no_grad()
def test_messenger_equals_the_naive_formula():
    messenger, features = Messenger(6).eval(), torch.randn(4, 6, 3, 5)
    torch.testing.assert_close(
        messenger(features, 2), naive_messenger(messenger, features, 2), atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("make", [lambda: Messenger(6), lambda: Messenger(6, memory="paired")])
@torch.no_grad()
def test_outside_training_an_answer_does_not_depend_on_the_batch(make):
    messenger, features = make().eval(), torch.randn(5, 6, 4, 4)
    alone = torch.cat([messenger(features[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(messenger(features), alone)
    messenger.shares_batch = True
    assert not torch.allclose(messenger(features), alone, atol=1e-3)


@torch.no_grad()
def test_labelled_samples_see_the_unlabelled_ones_but_not_the_reverse():
    messenger, features = Messenger(6).eval(), torch.randn(4, 6, 4, 4)
    other_unlabelled = torch.cat([features[:2], torch.randn(2, 6, 4, 4)])
    other_labelled = torch.cat([torch.randn(2, 6, 4, 4), features[2:]])
    answer = messenger(features, 2)
    assert not torch.allclose(messenger(other_unlabelled, 2)[:2], answer[:2], atol=1e-3)
    torch.testing.assert_close(messenger(other_labelled, 2)[2:], answer[2:])
    torch.testing.assert_close(messenger(features[[0, 1, 3, 2]], 2)[:2], answer[:2])


@torch.no_grad()
def test_with_paired_memory_a_labelled_sample_sees_its_partner_only():
    messenger, features = Messenger(6, memory="paired").eval(), torch.randn(4, 6, 4, 4)
    pair = messenger(features[[0, 2]], 1)
    torch.testing.assert_close(messenger(features, 2)[[0, 2]], pair)
    torch.testing.assert_close(messenger(features[[0, 1, 2]], 2)[0], pair[0])


@torch.no_grad()
def test_volumes_and_slices_of_the_same_positions_are_the_same():
    messenger, features = Messenger(6).eval(), torch.randn(2, 6, 2, 3, 4)
    torch.testing.assert_close(messenger(features, 1).flatten(2), messenger(features.flatten(2), 1))


@pytest.mark.parametrize("num_labelled", [0, 4])
def test_a_batch_without_one_of_both_kinds_is_refused(num_labelled):
    with pytest.raises(MethodError, match="labelled and unlabelled"):
        Messenger(6)(torch.randn(4, 6, 4, 4), num_labelled)


@pytest.mark.parametrize("num_labelled", [1, 3])
def test_an_odd_batch_and_unequal_parts_are_accepted(num_labelled):
    assert Messenger(6)(torch.randn(4, 6, 3, 3), num_labelled).shape == (4, 6, 3, 3)


@torch.no_grad()
def test_channel_attention_mixes_partner_and_self_by_alpha():
    features = torch.randn(4, 9, 8)
    attention = ChannelAttention(8, 2, alpha=0.0)
    torch.testing.assert_close(attention(features, (3, 3), 2), attention(features, (3, 3), None))
    crossed, halved = ChannelAttention(8, 2, alpha=1.0), ChannelAttention(8, 2, alpha=0.5)
    for other in (crossed, halved):
        other.load_state_dict(attention.state_dict())
    bias = attention.output.bias
    middle = (attention(features, (3, 3), 2) + crossed(features, (3, 3), 2)) / 2
    torch.testing.assert_close(halved(features, (3, 3), 2), middle)
    assert not torch.allclose(crossed(features, (3, 3), 2)[:2], attention(features, (3, 3), 2)[:2])
    assert bias.shape == (8,)


@torch.no_grad()
def test_channel_attention_keeps_positions_and_channels_apart():
    """Permuting the positions permutes the answer: what the first release's reshape broke."""
    attention, features = ChannelAttention(8, 2), torch.randn(2, 9, 8)
    order = torch.randperm(9)
    torch.testing.assert_close(
        attention(features[:, order], (3, 3), 1), attention(features, (3, 3), 1)[:, order]
    )


def test_stages_count_from_either_end():
    both = Messengers.behind((1, -1), (4, 8, 16))
    assert set(both) == {"0", "2"} and both["2"].enter.in_features == 16
    with pytest.raises(MethodError, match="no stage 4"):
        Messengers.behind((4,), (4, 8, 16))


@pytest.mark.parametrize("kind", ["stage", "block", "off"])
@torch.no_grad()
def test_segformer_gives_the_image_size_and_is_batch_invariant(kind):
    network = exchange_network(
        "mit_b0", None, 2, num_channels=1, num_outputs=3, exchange=Exchange(messenger=kind)
    ).eval()
    image = torch.rand(3, 1, 1, 50, 43)
    (logits,) = network(image)
    assert logits.shape == (3, 3, 1, 50, 43)
    torch.testing.assert_close(network(image[1:2])[0], logits[1:2], atol=1e-5, rtol=1e-4)
    assert network(image, 1)[0].shape == logits.shape


@pytest.mark.parametrize("dims, size", [(2, (1, 12, 8)), (3, (4, 12, 8))])
def test_unet_gives_the_patch_size_in_both_dimensions(dims, size):
    network = exchange_network(
        "unet", PYRAMID, dims, num_channels=2, num_outputs=3, exchange=Exchange()
    ).eval()
    assert network(torch.rand(2, 2, *size))[0].shape == (2, 3, *size)


@pytest.mark.parametrize(
    "encoder, dims, kind, message",
    [
        ("mit_b0", 3, "stage", "sees slices"),
        ("unet", 3, "block", "inside the blocks"),
        ("mit_b9", 2, "stage", "there is no encoder"),
    ],
)
def test_choices_that_do_not_fit_are_refused(encoder, dims, kind, message):
    with pytest.raises(MethodError, match=message):
        exchange_network(
            encoder, PYRAMID, dims, num_channels=1, num_outputs=2, exchange=Exchange(messenger=kind)
        )


@torch.no_grad()
def test_sums_over_many_tokens_fit_into_float16():
    messenger, features = Messenger(6).eval(), torch.randn(4, 6, 64, 64)
    messenger.labelled.query.weight.mul_(30)
    messenger.labelled.key.weight.mul_(30)
    exact = messenger(features, 2)
    with torch.autocast("cpu", dtype=torch.float16):
        found = messenger(features, 2).float()
    torch.testing.assert_close(found, exact, atol=0.02, rtol=0.02)
