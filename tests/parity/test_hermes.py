"""Hermes-R, Hermes-M, their blocks and losses equal the original's numbers, the parts in float64."""

from dataclasses import replace

import pytest
import torch

from medplan.data.labels import LabelSpace
from medplan.errors import CheckpointError
from medplan.learning.task_losses import TaskLoss, adaptive_tversky, binary_cross_entropy, pool_slots
from medplan.methods.hermes import Hermes
from medplan.networks.medformer import BidirectionalBlock, MapFusion, MedFormer, PatchMerging, SemanticMap
from medplan.networks.prior_attention import PriorBlock, PriorFusion, PriorPool
from medplan.networks.prior_unet import PriorShape, PriorUNet
from medplan.networks.prior_weights import block_name, from_published
from tests.conformance.tiny import tiny_plan

FOUR = [[0, 1, 38, 39, -1], [64, 65, 66, 70, -1]]
FUSION_MODALITY = torch.tensor([0, -1])


def load(module, state):
    """Load published names of a single block, rows of the task table as they are."""
    module.double().load_state_dict({block_name(name): value for name, value in state.items()})
    return module.eval()


def tokens(original, name):
    return 2 * original.input(name) - 1


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.mark.parametrize(("width", "depth"), [(128, 2), (320, 4)])
def test_fusion_of_tokens_and_map_equals_the_original(reference, width, depth):
    original = reference("hermes_blocks")
    pool = PriorPool(num_tasks=72, num_added=0, num_modalities=5, num_tokens=10, width=width)
    state = original.state(f"fusion{width}")
    fusion = PriorFusion(pool, width=width, depth=depth, head_size=32).double()
    names = {block_name(name) if "prior" not in name.split(".")[0] else f"pool.{name.split('_')[0]}": name
             for name in state}  # fmt: skip
    names = {key.replace("pool.task", "pool.tasks").replace("pool.modality", "pool.modalities"): name
             for key, name in names.items()}  # fmt: skip
    fusion.load_state_dict({key: state[name] for key, name in names.items()})
    image = tokens(original, f"fusion{width}_feature")
    for ending, ids in (("", FOUR), ("_nonull", [row[:4] for row in FOUR])):
        features, found = fusion(image, torch.tensor(ids), FUSION_MODALITY, None)
        original.check(f"fusion{width}_feature_out{ending}", features)
        original.check(f"fusion{width}_tokens_out{ending}", found)


def test_blocks_equal_the_original(reference):
    original = reference("hermes_blocks")
    block = load(PriorBlock(128, head_size=32), original.state("prior_attention128"))
    image, found = block(tokens(original, "pab_feature"), tokens(original, "pab_tokens"))
    original.check("prior_attention128_feature", image)
    original.check("prior_attention128_tokens", found)
    for name, inputs, projects in (("bidir128", 128, True), ("bidir384to128_nomap", 384, False)):
        both = BidirectionalBlock(inputs, 128, width=128, head_size=32, projects_tokens=projects)
        load(both, original.state(name))
        image, found = both(tokens(original, f"{name}_feature"), tokens(original, f"{name}_tokens"))
        original.check(f"{name}_feature_out", image)
        original.check(f"{name}_tokens_out", found)
    summary = load(SemanticMap(128), original.state("map_generation128"))
    original.check("map_generation128_out", summary(tokens(original, "mapgen_feature")))
    fusion = load(MapFusion((128, 256, 320), head_size=32), original.state("map_fusion"))
    for number, fused in enumerate(fusion([tokens(original, f"mapfuse_{n}") for n in range(3)])):
        original.check(f"map_fusion_out_{number}", fused)
    merging = load(PatchMerging(32, 64), original.state("patch_merging"))
    original.check("patch_merging_out", merging(tokens(original, "merge_feature")))


KINDS = {
    "hermes_r": (PriorUNet, (2, 2, 4, 2, 2), 60.88),
    "hermes_m": (MedFormer, (2, 4, 8, 4, 2), 47.13),
}


@pytest.mark.parametrize("model", KINDS)
def test_networks_have_as_many_weights_as_published(model):
    kind, depths, millions = KINDS[model]
    with torch.device("meta"):
        network = kind(PriorShape(depths=depths))
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 2) == millions


@pytest.mark.slow
@pytest.mark.parametrize("call", ["null", "nonull", "batch"])
@pytest.mark.parametrize("model", KINDS)
def test_whole_network_equals_the_original(reference, model, call):
    original = reference(model)
    kind, depths, _ = KINDS[model]
    # The original is asked without a null slot; ours with one that is masked.
    network = kind(PriorShape(depths=depths, masks_null=call == "nonull")).eval()
    network.load_state_dict(from_published(original.state("net"), network))
    volume = 2 * original.input("hermes_volume_b" if call == "batch" else "hermes_volume") - 1
    # In float64 the convolutions take ten times as long; the tolerance allows for float32.
    output = network(volume.float(), torch.tensor(FOUR[: len(volume)]), FUSION_MODALITY[: len(volume)])
    slots = 4 if call == "nonull" else 5
    original.check(f"{call}_logits", output.logits[:, :slots])
    original.check(f"{call}_modality_logits", output.modality)
    if output.deep is not None:
        original.check(f"{call}_aux_logits", output.deep[:, :slots])


def test_losses_and_their_gradients_equal_the_original(reference):
    original = reference("hermes_losses")
    with torch.enable_grad():
        logits = (12 * original.input("loss_logits") - 6).requires_grad_()
        target = original.input("loss_target") < 0.3
        target[0, 4] = target[1, 2:] = False
        ids = torch.tensor([[0, 1, 38, 39, -1], [64, 65, 66, -1, -1]])

        def pooled(slots):
            return pool_slots(slots, ids >= 0)

        def check(name, loss):
            original.check(name, loss.reshape(1))
            return loss

        entropy = check("bce", pooled(binary_cross_entropy(logits, target)))
        tversky = check("tversky", pooled(adaptive_tversky(logits, target)))
        for name, loss in (("bce", entropy), ("tversky", tversky)):
            (gradient,) = torch.autograd.grad(loss, logits, retain_graph=True)
            original.check(f"{name}_gradient", gradient)
    check("seg", entropy + tversky)
    aux = 12 * original.input("loss_logits_aux") - 6
    of_aux = binary_cross_entropy(aux, target) + adaptive_tversky(aux, target)
    check("seg_with_aux", 0.5 * (entropy + tversky) + 0.5 * pooled(of_aux))
    perfect = torch.where(target, 30.0, -30.0).double()
    check("perfect_bce", pooled(binary_cross_entropy(perfect, target)))
    check("perfect_tversky", pooled(adaptive_tversky(perfect, target)))
    labels = LabelSpace(names=("a",), values=((1,),))
    released = TaskLoss([labels], num_slots=2, skips_absent=False, expected=None)
    scores = 6 * original.input("modality_logits") - 3
    modality = check("modality_ce", released.modality(scores, torch.tensor([0, -1, 4])))
    check("total", entropy + tversky + 0.01 * modality)


@pytest.mark.slow
def test_published_weights_load_strictly_and_tokens_go_by_their_names(reference):
    published = reference("hermes_r").state("net")
    labels = LabelSpace(names=("liver", "tail"), values=((1,), (2,)))
    plan = tiny_plan("hermes")
    chaos = replace(plan.datasets[0], name="CHAOS", labels=labels)
    method = Hermes(replace(plan, datasets=(chaos,), config={"modalities": ["T1"]}))
    before = method.network.fusions[0].pool.tasks[1].clone()
    method.load_encoder(published)
    pool = method.network.fusions[0].pool
    assert torch.equal(pool.tasks[0], published["prior_init_fuse_2.task_prior"][38].float())
    assert torch.equal(pool.tasks[1], before)
    assert torch.equal(pool.modalities[0], published["prior_init_fuse_2.modality_prior"][2].float())
    with pytest.raises(CheckpointError, match="missing"):
        method.load_encoder({name: value for name, value in published.items() if "up4" not in name})
