"""I-MedSAM: Segment Anything with adapters, prompted by boxes, and a decoder that answers at any resolution.

Paper: Wei et al. 2024, "I-MedSAM: Implicit Medical Image Segmentation with Segment Anything",
arXiv:2311.17081 (ECCV 2024). Official code: ucwxb/I-MedSAM, without a licence; read, not copied. Segment
Anything (Kirillov et al. 2023, arXiv:2304.02643, Apache-2.0) is used as a package.

| paper or released code                | here                                            |
|---------------------------------------|-------------------------------------------------|
| image of 384 x 384, stretched         | `grid.shape`, `patch_size`                      |
| LoRA rank 4 on queries and values     | `config.lora_rank`                              |
| frequency adapter, hidden width 4     | `config.frequency_hidden`                       |
| factor 0.5 of the frequency tokens    | `medplan.networks.implicit_sam.STRENGTH`        |
| Dec_c 1024, 512; Dec_f 256, 256, 128  | `medplan.networks.implicit.Widths`              |
| T passes, dropout 0.5, top-K 12.5 %   | `config.passes`, `dropout`, `share`             |
| 0.8 Dice + 0.2 cross-entropy          | `config.dice`, `config.bce`                     |
| coarse to fine over 5 epochs of 1000  | `config.ramp_epochs`, `config.epochs`           |
| coordinates open over 20 epochs       | `config.open_epochs`                            |
| box jitter 0 to 19 pixels of 384      | `config.jitter`                                 |
| AdamW, 1e-3 and 0.05 of it, decay 0.01 | `training.lr`, `config.adapter_lr_factor`      |

Differs, unless `compat`: see `medplan.networks.implicit` and `medplan.networks.frequency_adapter`; pixels are
normalised as SAM's were; cross-entropy counts (in the released code it is a softmax over one output, 0); a
part of the samples is prompted with the whole image, so that the method can also work without a box. Always:
shared augmentation of this package; a lesion that left the frame is an empty target rather than an endless
loop; batches of any size (of one class with `compat`), schedules by steps.

From nothing (`config.from_nothing`, where there are no weights) it is another method under the same prompts:
nothing is frozen, so there are no adapters; boxes are given as filled masks too, and as places of points in
them, and their sides are moved inwards too; the tiny encoder begins with the package's U-Net, whose finer
maps take part in the upscaling; every image is asked twice, with its box and, about any class, as a whole;
the learning rate warms up.
"""

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

from medplan.data.labels import IGNORE
from medplan.errors import MethodError
from medplan.learning.losses import mask_loss
from medplan.learning.schedules import WarmupThenPoly, falling
from medplan.method import Batch, Method, Needs, Phase, Predictor, Progress, Proposal, Situation, Update
from medplan.networks.feature_cache import FeatureCache
from medplan.networks.implicit import Uncertainty, drawn_points
from medplan.networks.implicit_sam import Maps, as_sam_sees, build_imedsam
from medplan.networks.prompted_answers import PromptedAnswers
from medplan.networks.sam import SAM_FILES, variant_of
from medplan.plan.schema import Plan
from medplan.records import decode
from medplan.samples.augment import Augmentation
from medplan.samples.box_prompts import prompting_boxes, whole_image
from medplan.samples.cases import Case
from medplan.samples.prompted import Prompted, masks_of
from medplan.samples.spatial import Spatial

__all__ = ["METHOD", "Config", "ImedSam"]

SIDE, TINY_SIDE = 384, 192
FEW_POINTS = 16_384
"""Of the 147,456 of an image, where not all of them fit."""
WARMUP = 0.05
"""Part of a training from nothing over which the learning rate rises."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Numbers of I-MedSAM; the defaults are the released code's. None is settled by encoder and weights.

    Attributes:
        compat: compute what the released code computes, with its slips, so that its weights can be used.
        from_nothing: train all of it, as there are no weights; see the module. Else adapters, prompts,
            upscaling and decoder.
        lora_rank, frequency_hidden: of the low-rank updates and the frequency branch; 0 leaves them out, as
            is done from nothing.
        dropout, passes, share, uncertainty: of the choice of points that are refined; see
            `medplan.networks.implicit.ImplicitDecoder`.
        points: per image that are learned from in a step, drawn anew; 0 for all.
        dice, bce: weights of the losses.
        epochs: into which the training is divided, for the two below.
        ramp_epochs: until the coarse answer no longer counts by itself.
        open_epochs: until all entries of the coordinate code are open.
        jitter: sides of training boxes are moved outwards by up to this share of the image's side; from
            nothing also inwards by up to half of it.
        whole_share: share of the samples that are prompted with the whole image, of any class.
        adapter_lr_factor: learning rate of all but the decoder, relative.
        augment: change images and labels at random. Without it, lora_rank and frequency_hidden being 0, what
            the frozen encoder says of an image is computed once and kept in memory.
    """

    compat: bool = False
    from_nothing: bool | None = None
    lora_rank: int | None = None
    frequency_hidden: int | None = None
    dropout: float = 0.5
    passes: int = 2
    share: float = 0.125
    uncertainty: Uncertainty = "mc"
    points: int | None = None
    dice: float = 0.8
    bce: float | None = None
    epochs: int = 1000
    ramp_epochs: int = 5
    open_epochs: int = 20
    jitter: float = 20 / 384
    whole_share: float | None = None
    adapter_lr_factor: float | None = None
    augment: bool = True

    def __post_init__(self) -> None:
        for name in ("dropout", "share", "whole_share", "jitter"):
            if not 0 <= (getattr(self, name) or 0.0) <= 1:
                raise ValueError(f"'{name}' should be within [0, 1], found {getattr(self, name)}")
        if self.dropout == 1 or (self.dropout == 0 and self.uncertainty == "mc"):
            raise ValueError(
                f"'dropout' {self.dropout} leaves nothing to tell doubtful points by; take one between 0 and "
                "1, or uncertainty=margin without any"
            )
        for name, least in (("passes", 2), ("epochs", 1), ("ramp_epochs", 1), ("open_epochs", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"'{name}' should be at least {least}, found {getattr(self, name)}")
        if self.compat and self.from_nothing:
            raise ValueError("'compat' is for published weights, 'from_nothing' for none")

    def epoch(self, fraction: float) -> int:
        """Return how many of `epochs` are over at a fraction of the training."""
        return math.floor(fraction * self.epochs + 1e-9)

    def fine_weight(self, fraction: float) -> float:
        """Return the weight of the refined answer's loss; the coarse one's is the rest."""
        return min(1.0, (self.epoch(fraction) + 1) / self.ramp_epochs)

    def openness(self, fraction: float) -> float:
        """Return how far the coordinate code is open, 1 for all of it."""
        return min(1.0, (self.epoch(fraction) + 1) / self.open_epochs)


class ImedSam(Method):
    """See the module."""

    needs = Needs(
        dims=(2,),
        roles=("labelled",),
        encoders=("vit_b", "vit_l", "vit_h", "tiny"),
        patch_multiple=16,
        grid="squeezed",
        normalisation="unit",
        whole_image=True,
        prompts=True,
    )
    Config = Config

    @classmethod
    def propose(cls, situation: Situation) -> Proposal:
        """Fit wherever there are labels; best for one kind of lesion in pictures, from SAM's weights."""
        if situation.num_labelled == 0:
            return Proposal(fits=False, score=0, reason="there is no labelled case to learn from")
        if situation.num_datasets > 1:
            return Proposal(fits=False, score=0, reason="it learns one dataset at a time")
        fitting = situation.is_picture and "RGB" in situation.modalities and situation.num_classes == 1
        what = "colour pictures with one class" if fitting else "slices of anything, one class after another"
        if situation.without_weights:
            return Proposal(
                fits=True,
                score=10,
                reason=f"{what}; without SAM's weights no better than 'supervised', which needs no boxes",
                encoder="tiny",
                lr=1e-3,
                weight_decay=0.01,
                patch_size=(1, TINY_SIDE, TINY_SIDE),
                config={"epochs": 100},
                reasons={"encoder": "no weights are wanted, and a large encoder would need them"},
            )
        named = situation.encoder_weights
        score = (80 if fitting else 30) if named else (45 if fitting else 15)
        return Proposal(
            fits=True,
            score=score,
            reason=what if named else f"{what}; needs SAM's weights, without them 'supervised' is safer",
            encoder=variant_of(named) or "vit_b",
            encoder_weights=SAM_FILES,
            lr=1e-3,
            weight_decay=0.01,
            patch_size=(1, SIDE, SIDE),
            reasons={"patch_size": "the paper's image size"},
        )

    @classmethod
    def settle(cls, plan: Plan) -> Plan:
        """Freeze what was published, and nothing that starts at random."""
        compat, from_nothing = bool(plan.config.get("compat")), plan.config.get("from_nothing")
        if from_nothing is None:
            from_nothing = plan.encoder_weights is None and not compat
        released, is_small = "as released", plan.encoder == "tiny"
        adapters = (
            (0, "all of it is trained, so there is nothing to adapt") if from_nothing else (4, released)
        )
        chosen: dict[str, tuple[Any, str]] = {
            "from_nothing": (True, "there are no weights to begin from")
            if from_nothing
            else (False, "published weights stay as they are, adapters are trained"),
            "lora_rank": adapters,
            "frequency_hidden": adapters,
            "adapter_lr_factor": (0.5, "all of it begins at random") if from_nothing else (0.05, released),
            "whole_share": (0.0, released) if compat else (0.25, "so that it answers without a box too"),
            "points": (1024, "of each image, drawn anew") if is_small else (0, "all of them, as released"),
            "bce": (0.0, "as released, by a slip") if compat else (0.2, "as in the paper"),
        }
        missing = {key: both for key, both in chosen.items() if plan.config.get(key) is None}
        config = {key: value for key, (value, _) in missing.items()}
        reasons = {f"config.{key}": why for key, (_, why) in missing.items()}
        return replace(plan, config={**plan.config, **config}, reasons={**plan.reasons, **reasons})

    @classmethod
    def lighter(cls, plan: Plan) -> Plan | None:
        """Learn from a part of the points of each image; with ``compat`` from all, as released."""
        if plan.config["compat"] or plan.config["points"]:
            return None
        return replace(plan, config={**plan.config, "points": FEW_POINTS})

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        depth, height, width = plan.patch_size
        if len(plan.datasets) != 1 or depth != 1 or height != width or height % 16:
            raise MethodError(
                f"imedsam learns one dataset from square slices whose side is a multiple of 16; plan "
                f"'{plan.name}' has {len(plan.datasets)} and patches {plan.patch_size}. Plan it again with "
                f"'--patch-size {SIDE} {SIDE}'."
            )
        if plan.num_channels > 3:
            raise MethodError(
                f"imedsam: SAM sees three channels at most; the images of '{plan.name}' have "
                f"{plan.num_channels}. Leave channels out of dataset.json."
            )
        self.plan = plan
        self.config = config = decode(Config, plan.config, where=f"plan '{plan.name}' config")
        labels = plan.datasets[0].labels
        rows = labels.membership()[int(labels.is_exclusive) :]
        self.members = tuple(tuple(int(code) for code in np.flatnonzero(row)) for row in rows)
        self.network = build_imedsam(
            plan.encoder, height, len(self.members), rank=config.lora_rank or 0,
            hidden=config.frequency_hidden or 0, compat=config.compat,
            from_nothing=bool(config.from_nothing), dropout=config.dropout, passes=config.passes,
            share=config.share, uncertainty=config.uncertainty,
        )  # fmt: skip
        self.features = FeatureCache()
        self.register_buffer("openness", torch.ones(()))
        self.openness: Tensor

    def load_encoder(self, weights: Mapping[str, Tensor]) -> None:
        """Load a published SAM file, with ``compat`` also the authors' checkpoint if named beside it."""
        where = str(self.plan.encoder_weights)
        if self.plan.encoder not in SAM_FILES:
            raise MethodError(
                f"imedsam: encoder '{self.plan.encoder}' has no published weights; plan with '--encoder "
                "vit_b', or with '--encoder-weights none'."
            )
        self.network.load_published(weights, where=where)

    def phases(self) -> Sequence[Phase]:
        training, patch_size = self.plan.training, self.plan.patch_size
        axes = self.plan.mirror_axes(self.plan.datasets[0])
        often = 0.5 if self.config.augment else 0.0
        spatial = Spatial(
            rotation_probability=often, scaling_probability=often, degrees=20, scale=(0.8, 1.2), in_plane=True
        )  # fmt: skip
        augment = Augmentation(patch_size=patch_size, mirror_axes=axes, keeps_slices=True)
        train = Phase(
            name="train",
            num_steps=training.iterations,
            batch_size=training.batch_size,
            sample=Prompted(patch_size, self.members, self.config.whole_share or 0.0, spatial),
            augment=augment if self.config.augment else None,
            schedule=WarmupThenPoly(WARMUP) if self.config.from_nothing else falling,
        )
        return (train,)

    def optimizers(self, phase: str) -> dict[str, Optimizer]:
        training, config, network = self.plan.training, self.config, self.network
        decoder = list(network.decoder.parameters())
        if config.from_nothing:
            moved = network.used_parameters()
        else:
            moved = [parameter for group in network.adapter_groups().values() for parameter in group]
        ids = {id(parameter) for parameter in decoder}
        others = [parameter for parameter in moved if id(parameter) not in ids]
        groups: list[dict[str, Any]] = [
            {"params": decoder},
            {"params": others, "lr": training.lr * (config.adapter_lr_factor or 1.0)},
        ]
        return {"main": AdamW(groups, lr=training.lr, weight_decay=training.weight_decay)}

    def training_step(self, batch: Batch, update: Update, at: Progress) -> dict[str, Tensor]:
        named = zip(batch["case"], batch["depth"].tolist(), strict=True) if not self.config.augment else ()
        return self._step(batch, list(batch["class"]), list(batch["other"]), update, at, list(named))

    def footprint_step(self, batch: Batch, update: Update, at: Progress) -> None:
        classes = [0] * len(batch["image"])
        self._step(batch, classes, classes, update, at)

    def _step(
        self,
        batch: Batch,
        classes: list[int],
        others: list[int],
        update: Update,
        at: Progress,
        keys: Sequence[Hashable] = (),
    ) -> dict[str, Tensor]:
        config, shape = self.config, (self.plan.patch_size[1], self.plan.patch_size[2])
        codes_BYX, depth_B = batch["label"][:, 0], batch["depth"]
        target_BYX = masks_of(codes_BYX, self.members, classes)
        inwards = config.jitter / 2 if config.from_nothing else 0.0
        box_B4 = prompting_boxes(
            target_BYX, batch["jitter"], batch["whole"] > 0, outwards=config.jitter, inwards=inwards
        )
        openness = config.openness(at.fraction)
        self.openness.fill_(openness)
        maps = self._embed(batch["image"][:, :, 0], keys)
        if config.from_nothing:
            target_BYX = torch.cat([target_BYX, masks_of(codes_BYX, self.members, others)])
            box_B4 = torch.cat([box_B4, whole_image(shape, like=box_B4).expand_as(box_B4)])
            classes, maps = classes + others, tuple(torch.cat([each, each]) for each in maps)
            codes_BYX, depth_B = (torch.cat([each, each]) for each in (codes_BYX, depth_B))
        index_P = drawn_points(shape, config.points or 0, depth_B.device)
        target_BP, valid_BP = target_BYX.flatten(1), (codes_BYX != IGNORE).flatten(1)
        if index_P is not None:
            target_BP, valid_BP = target_BP[:, index_P], valid_BP[:, index_P]
        coarse_BP, fine_BP = self.network.at_points(
            maps, box_B4, shape, classes, index_P=index_P, depth_B=depth_B, openness=openness
        )
        weight = config.fine_weight(at.fraction)
        fine, coarse = (
            mask_loss(logits_BP, target_BP, valid_BP, dice=config.dice, bce=config.bce or 0.0)
            for logits_BP in (fine_BP, coarse_BP)
        )
        loss = fine if weight == 1 else weight * fine + (1 - weight) * coarse
        update.minimise(loss)
        return {"loss": loss.detach(), "coarse": coarse.detach(), "fine": fine.detach()}

    def predictor(self, case: Case, support: Sequence[Case]) -> Predictor:
        answers = self._answers()

        def logits(
            patches: Tensor, corners: Sequence[tuple[int, int, int]], flipped: Sequence[int] = ()
        ) -> Tensor:
            shape = (patches.shape[-2], patches.shape[-1])
            maps = self._embed(patches[:, :, 0])
            slices = [
                answers.of_slice(
                    tuple(each[number : number + 1] for each in maps), case, corner, shape, flipped
                )
                for number, corner in enumerate(corners)
            ]
            return torch.stack(slices).unsqueeze(2)

        return logits

    def answers_at(
        self, case: Case, support: Sequence[Case], shape: tuple[int, int, int]
    ) -> Iterator[Tensor] | None:
        fits = case.shape[0] == shape[0] and case.shape[1:] == self.plan.patch_size[1:]
        if not fits:
            return None
        return self._answers().of_slices(case, shape[1:], lambda x: self._embed(x.to(self.openness.device)))

    def _answers(self) -> PromptedAnswers:
        labels = self.plan.datasets[0].labels
        return PromptedAnswers(
            network=self.network,
            names=labels.names,
            is_exclusive=labels.is_exclusive,
            shape=(self.plan.patch_size[1], self.plan.patch_size[2]),
            openness=1.0 if self.config.compat else float(self.openness),
            is_young=bool(self.config.from_nothing),
        )

    def _embed(self, image_BCYX: Tensor, keys: Sequence[Hashable] = ()) -> Maps:
        """Return what the encoder says of images of one to three channels with values in [0, 1].

        Args:
            keys: what images that never change are known by.
        """
        seen, encoder = as_sam_sees(image_BCYX, normalised=not self.config.compat), self.network.encoder
        is_fixed = not (self.config.from_nothing or encoder.added_parameters())
        with torch.set_grad_enabled(torch.is_grad_enabled() and not is_fixed):
            maps: Maps = self.features(keys, seen, encoder) if keys and is_fixed else encoder(seen)
        return maps


METHOD = ImedSam
