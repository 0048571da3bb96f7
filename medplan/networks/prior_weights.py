"""Published names of Hermes' weights, translated into those of `PriorUNet` and `MedFormer`."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from medplan.networks.prior_unet import PriorNetwork

__all__ = ["PUBLISHED_MODALITIES", "PUBLISHED_TASKS", "block_name", "from_published"]

PUBLISHED_MODALITIES = ("CT", "PET", "T1", "T2", "cine")

_ABDOMEN = (
    "spleen", "right kidney", "left kidney", "gallbladder", "oesophagus", "liver", "stomach", "aorta",
)  # fmt: skip
_ADRENALS = ("pancreas", "right adrenal gland", "left adrenal gland")
_PUBLISHED: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("LiTS", ("liver", "tumour")),
    ("KiTS19", ("kidney", "tumour")),
    ("AMOS", (*_ABDOMEN, "postcava", *_ADRENALS, "duodenum", "bladder", "prostate or uterus")),
    ("Synapse", (*_ABDOMEN, "inferior vena cava", "portal and splenic veins", *_ADRENALS)),
    ("StructSegThorax", ("left lung", "right lung", "heart", "oesophagus", "trachea", "spinal cord")),
    ("CHAOS", ("liver", "right kidney", "left kidney", "spleen")),
    (
        "StructSegHead",
        (
            "left eye", "right eye", "left lens", "right lens", "left optic nerve", "right optic nerve",
            "optic chiasm", "pituitary", "brain stem", "left temporal lobe", "right temporal lobe",
            "spinal cord", "left parotid gland", "right parotid gland", "left inner ear", "right inner ear",
            "left middle ear", "right middle ear", "left temporomandibular joint",
            "right temporomandibular joint", "left mandible", "right mandible",
        ),
    ),
    ("MnMs", ("left ventricle", "myocardium", "right ventricle")),
    ("BrainStructure", ("grey matter", "white matter", "cerebrospinal fluid")),
    ("AutoPET", ("lesion",)),
)  # fmt: skip
PUBLISHED_TASKS = tuple(f"{dataset}/{name}" for dataset, names in _PUBLISHED for name in names)
"""Names of the published rows 0 to 70, as the converters here spell them. The order of the organs
of StructSeg is that of the challenge as remembered."""

_BLOCK = (
    (r"prior_aggregate_block\.norm1\.", "to_tokens.norm."),
    (r"prior_aggregate_block\.norm2\.", "to_tokens.memory_norm."),
    (r"prior_aggregate_block\.fn\.", "to_tokens."),
    (r"feat_aggregate_block\.norm1\.", "to_image.norm."),
    (r"feat_aggregate_block\.norm2\.", "to_image.memory_norm."),
    (r"feat_aggregate_block\.fn\.", "to_image."),
    (r"prior_ffn\.norm\.", "tokens_norm."),
    (r"prior_ffn\.fn\.", "tokens_perceptron."),
    (r"feat_ffn\.norm\.", "image_norm."),
    (r"feat_ffn\.fn\.", "image_perceptron."),
    (r"\bnorm2\.", "token_norm."),
    (r"\battn\.feat_qv\.", "map_query_value."),
    (r"\battn\.feat_out\.", "map_out."),
    (r"\battn\.map_qv\.", "token_query_value."),
    (r"\battn\.map_out\.", "token_out."),
    (r"feedforward\.expand_proj\.", "feedforward.expand."),
    (r"feedforward\.pointwise\.", "feedforward.project."),
    (r"feedforward\.se\.excitation\.0\.", "feedforward.squeeze."),
    (r"feedforward\.se\.excitation\.2\.", "feedforward.excite."),
    (r"fusion\.layers\.(\d)\.0\.norm\.", r"layers.\1.norm."),
    (r"fusion\.layers\.(\d)\.0\.fn\.", r"layers.\1."),
    (r"fusion\.layers\.(\d)\.1\.norm\.", r"layers.\1.perceptron_norm."),
    (r"fusion\.layers\.(\d)\.1\.fn\.", r"layers.\1.perceptron."),
    (r"\bin_proj\.", "inward."),
    (r"\bout_proj\.", "outward."),
    (r"\bbase_proj\.", "features."),
    (r"\bsemantic_proj\.", "weights."),
    (r"\bto_qkv\.", "query_key_value."),
    (r"\bto_q\.", "query."),
    (r"\bto_kv\.", "key_value."),
    (r"\bto_out\.", "out."),
    (r"\bfc1\.", "first."),
    (r"\bfc2\.", "second."),
    (r"\bconv1\.", "first."),
    (r"\bconv2\.", "second."),
    (r"\battn_layers\.", "blocks."),
    (r"\btrans_blocks\.blocks\.", "blocks."),
    (r"\b(?:prior_selection\.)?task_prior\b", "pool.tasks"),
    (r"\b(?:prior_selection\.)?modality_prior\b", "pool.modalities"),
)
_COMMON = (
    (r"^inc\.conv1\.", "stem.conv."),
    (r"^inc\.conv2\.", "stem.block."),
    (r"^out(?:_classifier)?\.classifier_pred\.", "head.perceptrons."),
    (r"^out(?:_classifier)?\.", "head."),
    (r"^aux_classifier\.classifier_pred\.", "deep_head.perceptrons."),
    (r"^aux_classifier\.", "deep_head."),
    (r"^mod_out\.classifier\.", "modality_head.perceptron."),
    (r"^mod_out\.", "modality_head."),
)


def block_name(published: str) -> str:
    """Translate a name inside a block, whichever network it belongs to."""
    for pattern, replacement in _BLOCK:
        published = re.sub(pattern, replacement, published)
    return published


def from_published(weights: Mapping[str, Tensor], network: PriorNetwork) -> dict[str, Tensor]:
    """Translate a published state of Hermes-R or Hermes-M into a state of `network`.

    The rows of the published task tables are those of
    `PUBLISHED_TASKS`, an unused one, and the null row; the unused one is left out. The result may still have
    other rows than `network` has tasks.
    """
    num_levels, is_unet = len(network.shape.channels), "fusions.0.pool.tasks" in network.state_dict()
    state = {}
    for name, value in weights.items():
        key = _place(name.removeprefix("module."), num_levels, is_unet=is_unet)
        if key.endswith("pool.tasks"):
            value = torch.cat([value[:-2], value[-1:]])
        state[key] = value
    return state


def _place(name: str, num_levels: int, *, is_unet: bool) -> str:
    for pattern, replacement in _COMMON:
        renamed = re.sub(pattern, replacement, name)
        if renamed != name:
            return block_name(renamed)
    kind, number, rest = _parse(name)
    if is_unet:
        if kind == "down" and re.match(r"conv\.[1-9]\.", rest):
            # The published blocks are numbered behind the pooling.
            index = int(rest[5]) - 1
            return block_name(f"downs.{number - 1}.{index}.{rest[7:]}")
        if kind == "up":
            return block_name(f"ups.{number - 1}.{rest.removeprefix('conv.')}")
        return block_name(f"fusions.{number - 2}.{rest}")
    if kind == "map_fusion":
        return block_name(f"map_fusion.{rest}")
    fused_ups = num_levels - 3
    if kind == "up":
        if number > fused_ups:
            return block_name(f"fine_ups.{number - 1 - fused_ups}.{rest.removeprefix('conv_blocks.')}")
        if rest.startswith("map_reduction."):
            return f"map_reductions.{number - 1}.{rest.removeprefix('map_reduction.')}"
        return block_name(f"ups.{number - 1}.{rest}")
    if rest.startswith("patch_merging."):
        return f"mergings.{number - 1}.{rest.removeprefix('patch_merging.')}"
    if rest.startswith("conv_blocks."):
        return block_name(f"shallow.{rest.removeprefix('conv_blocks.')}")
    if rest.startswith("map_gen."):
        return block_name(f"maps.{number - 2}.{rest.removeprefix('map_gen.')}")
    return block_name(f"downs.{number - 2}.{rest}")


def _parse(name: str) -> tuple[str, int, str]:
    found = re.match(r"^(down|up|prior_init_fuse_|prior_fuse_)(\d+)\.(.*)$", name)
    if found:
        return found[1], int(found[2]), found[3]
    kind, _, rest = name.partition(".")
    return kind, 0, rest
