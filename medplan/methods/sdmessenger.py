"""S&D Messenger: learning from few labelled and many unlabelled cases, also across domains.

Paper: Zhang, Wang, Li, "S&D Messenger: Exchanging Semantic and Domain Knowledge for Generic Semi-Supervised
Medical Image Segmentation", arXiv:2407.07763. Official code: github.com/xmed-lab/SD-Messenger, no licence
stated; read, not copied.

Parts of labelled patches are pasted, with their labels, into unlabelled ones (L2U), and the features of
labelled patches attend to the channels of unlabelled ones (U2L, `medplan.networks.messenger`).

| paper or released code                     | here                                                         |
|--------------------------------------------|--------------------------------------------------------------|
| L_x, class-weighted (dagger)               | `supervised_loss` with `Difficulty`; `class_weights`         |
| L_u                                        | `pseudo_label_loss`; `unsupervised_weight`                   |
| L_c                                        | `paste_consistency`; `consistency_weight`                    |
| epochs 0-5 of 300 without L_u, L_c         | `warmup`                                                     |
| square of 64 of 512 pixels                 | `paste_fraction` (`paste_side` in voxels as released)        |
| alpha of the in-block messenger            | `alpha`                                                      |
| MiT-B5, SGD, lr 1e-3, heads x 5            | `Plan.encoder`, `optimizer`, `training.lr`, `HEAD_LR_FACTOR` |
| (1 - t/T)^0.9                              | the phase's schedule; AdamW rises first, for `LR_WARMUP`     |

The three settings of the paper differ in the roles of cases only: labelled and unlabelled cases of one domain
(semi-supervised), of two (adaptation), or of all but one (generalisation).

Differs: nnU-Net's augmentation, without mirroring, instead of 3 of 6 operations; a third of the labelled
patches are centred on foreground; inputs are normalised as the plan says instead of to [0, 1]; L_x has a Dice
loss beside the cross-entropy; a U-Net learns with AdamW, at several resolutions.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from medplan.data.labels import IGNORE
from medplan.errors import MethodError
from medplan.learning.difficulty import Difficulty, hard_dice
from medplan.learning.losses import deep_supervision
from medplan.learning.optimisers import OptimizerName, adamw_or_sgd
from medplan.learning.pseudo_labels import (
    paste_consistency,
    pseudo_label_loss,
    pseudo_labels,
    supervised_loss,
)  # fmt: skip
from medplan.learning.schedules import WarmupThenPoly, decay_at
from medplan.method import (
    Augment,
    Batch,
    Method,
    Needs,
    Phase,
    Predictor,
    Progress,
    Proposal,
    Sampler,
    Situation,
    Update,
)  # fmt: skip
from medplan.networks.average import MovingAverage
from medplan.networks.exchange import Exchange, exchange_network
from medplan.networks.messenger import Memory, shared_batch
from medplan.networks.mit import SIZES, load_encoder, size_of
from medplan.networks.segformer import MessengerSegFormer
from medplan.plan.schema import Plan
from medplan.records import decode
from medplan.samples.augment import Augmentation
from medplan.samples.cases import Case
from medplan.samples.paste import DrawsPaste, Pasting, paste
from medplan.samples.sampling import DrawsHistogram, Labelled, LabelledAndUnlabelled
from medplan.samples.spatial import Spatial
from medplan.samples.views import WeakAndStrong

__all__ = ["METHOD", "Config", "SDMessenger"]

FROM_SCRATCH: Mapping[str, Any] = {
    "optimizer": "adamw",
    "memory": "paired",
    "class_weights": False,
    "warmup": 0.4,
    "warmup_steps": 750,
    "warmup_exchange": False,
    "ramp": 0.1,
    "unsupervised_weight": 3.0,
    "ema": 0.99,
    "paste_fraction": (0.4, 0.8),
    "paste_back": 0.5,
    "turning": 0.7,
    "strong_view": True,
    "contrast": 0.5,
}
"""For a U-Net, which must first learn what pretrained encoders know."""

MATCH_ACROSS_DOMAINS = 0.8
"""Measured: necessary from CT to MR, and worth nothing among scans of one kind."""

LR_WARMUP = 0.05
"""Part of the training over which the learning rate of AdamW rises."""

MOMENTUM, HEAD_LR_FACTOR = 0.9, 5.0
"""As released: of SGD, and the learning rate of head and messengers relative to a Mix Transformer's."""

DEGREES = 30.0
"""Patches turn by this much at most: further, and left and right, which names tell apart, change places."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Numbers of S&D Messenger. "Released" means the official code of April 2025.

    Attributes:
        messenger: ``stage`` behind stages of the encoder (released); ``block`` inside the last stage's blocks
            (the paper, Mix Transformer only); ``off`` leaves the exchange of features out.
        stages: stages with a messenger, from 1 at the finest or -1 at the coarsest. Released: (4,) or all.
        memory: what labelled samples attend to: all unlabelled samples of the batch (released; its cost
            grows with the square of the batch) or their partner.
        alpha: share of the exchanged features with ``block``. First release: 0.5.
        learn_from_unlabelled: False trains the same network on the labelled cases alone, as a reference.
        warmup: fraction of the steps without unsupervised terms. Released: 6 of 300 epochs. Differs:
            unlabelled samples are not decoded meanwhile, so they stay out of the head's batch statistics.
        warmup_steps: the least number of them, up to three quarters of the training. Released: 0.
        warmup_exchange: let labelled samples attend to unlabelled ones in the warm-up already. Released: yes.
            False learns from labelled samples alone until then, at less than half the cost of a step.
        ramp: fraction of the steps, after that, over which their weight rises to its full value. Released: 0.
        unsupervised_weight, consistency_weight: of L_u and L_c against 1 for L_x. Released: 1 and 1. Differs:
            the sum is not divided by 3, which is the same as a learning rate three times as high.
        class_weights: weight the supervised cross-entropy by difficulty. Released: yes (the rows with a
            dagger).
        paste_fraction: lowest and highest side of the pasted box, relative to the patch.
        paste_side: side of the pasted square in pixels, centred in the extent of the foreground and only if
            that is larger; None takes `paste_fraction`. Released: 64.
        paste_back: probability that the box stays unlabelled, and the labelled patch is pasted around it.
            Released: 0.
        strong_view: degrade the intensities of what is learned from further than of what pseudo-labels are
            made from. Released: no.
        contrast: probability that a strong view shows another contrast, as another modality might.
        match: probability that a strong view has the histogram of an unlabelled case. Released: 0.
        turning: probability of a rotation, and of a scaling. Released: 0.35.
        threshold: least probability of a pseudo-label; below it a voxel does not count. Released: 0.
        ema: decay of a second set of weights that makes the pseudo-labels and the predictions; 0 for none.
            Released: 0.
        optimizer: Released: ``sgd``.
        compat: released slips: the mask of L_c is transposed, the truth in the class weights is wrong,
            pseudo-labels depend on the rest of the batch, predictions on voxels without annotation count in
            the Dice of L_u, L_x has no Dice.
    """

    messenger: Literal["stage", "block", "off"] = "stage"
    stages: tuple[int, ...] = (-1,)
    memory: Memory = "batch"
    alpha: float = 0.5
    learn_from_unlabelled: bool = True
    warmup: float = 0.02
    warmup_steps: int = 0
    warmup_exchange: bool = True
    ramp: float = 0.0
    unsupervised_weight: float = 1.0
    consistency_weight: float = 1.0
    class_weights: bool = True
    paste_fraction: tuple[float, float] = (0.25, 0.5)
    paste_side: int | None = None
    paste_back: float = 0.0
    strong_view: bool = False
    contrast: float = 0.0
    match: float = 0.0
    turning: float = 0.2
    threshold: float = 0.0
    ema: float = 0.0
    optimizer: OptimizerName = "sgd"
    compat: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.warmup + self.ramp <= 1 or min(self.warmup, self.ramp) < 0:
            raise ValueError(f"'warmup' {self.warmup} and 'ramp' {self.ramp} should be parts of 1")
        if max(self.contrast, self.match) > 0 and not self.strong_view:
            raise ValueError("'contrast' and 'match' are of the strong view; set 'strong_view' too")
        if not 0 < self.paste_fraction[0] <= self.paste_fraction[1] <= 1:
            raise ValueError(f"'paste_fraction' {self.paste_fraction} should be rising and within (0, 1]")
        for name in ("threshold", "ema", "alpha", "contrast", "match", "turning", "paste_back"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"'{name}' should be within [0, 1], found {getattr(self, name)}")

    @property
    def exchange(self) -> Exchange:
        return Exchange(**{field.name: getattr(self, field.name) for field in fields(Exchange)})


class SDMessenger(Method):
    """See the module."""

    needs = Needs(dims=(3, 2), roles=("labelled", "unlabelled"), encoders=("unet", *SIZES), pyramid=True)
    Config = Config

    @classmethod
    def propose(cls, situation: Situation) -> Proposal:
        """Fit where labelled cases come with unlabelled ones or other domains; best with few labels."""
        unfit = partial(Proposal, fits=False, score=0)
        if situation.num_labelled == 0:
            return unfit(reason="there is no labelled case to learn from")
        if situation.num_datasets > 1:
            return unfit(reason="it learns one dataset at a time, whose cases may be of several domains")
        if situation.num_unlabelled == 0 and len(situation.domains) < 2:
            return unfit(reason="there is neither an unlabelled case nor a second domain")
        weights = situation.encoder_weights
        what = f"{situation.num_labelled} labelled and {situation.num_unlabelled} unlabelled cases"
        if not situation.num_unlabelled:
            what = f"cases of {len(situation.domains)} domains"
        match = MATCH_ACROSS_DOMAINS if len(situation.domains) > 1 else 0.0
        return Proposal(
            fits=True,
            score=70 if situation.num_labelled <= max(situation.num_unlabelled, 1) else 50,
            reason=f"it learns from {what} together",
            dims=2 if weights or situation.encoder in SIZES else None,
            encoder=size_of(weights) if weights else "unet",
            batch_size=8 if weights else None,
            lr=1e-3,
            weight_decay=1e-4 if weights else 3e-5,
            config={} if weights else {**FROM_SCRATCH, "match": match},
            reasons={
                "encoder": f"{'' if weights else 'no '}pretrained weights are given",
                "dims": "a Mix Transformer sees slices",
                "batch_size": "8 of each kind, as released",
            },
        )

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        labels = plan.datasets[0].labels
        if len(plan.datasets) != 1:
            raise MethodError(
                f"sdmessenger learns one dataset at a time; plan '{plan.name}' has {len(plan.datasets)}."
            )
        if not labels.is_exclusive:
            raise MethodError(
                f"sdmessenger needs classes that exclude each other; dataset '{plan.datasets[0].name}' has "
                "overlapping regions. Use 'supervised', or a dataset.json without regions."
            )
        self.plan = plan
        self.config = decode(Config, plan.config, where=f"plan '{plan.name}' config")
        if self.config.compat and plan.dims != 2:
            raise MethodError(
                "sdmessenger: 'compat' repeats slips of the released 2-D code; plan with '--dims 2'."
            )
        self.num_classes = labels.num_outputs
        self.network = exchange_network(
            plan.encoder,
            plan.pyramid,
            plan.dims,
            num_channels=plan.num_channels,
            num_outputs=self.num_classes,
            exchange=self.config.exchange,
        )
        if isinstance(self.network, MessengerSegFormer) and plan.encoder_weights is None:
            logger.warning("The encoder %s starts from random weights; none were given.", plan.encoder)
        self._warms_up_with_exchange = self.config.warmup_exchange and self.config.messenger != "off"
        self.pasting = Pasting(
            num_classes=self.num_classes,
            fraction=self.config.paste_fraction,
            side=self.config.paste_side,
            back=self.config.paste_back,
            compat=self.config.compat,
        )
        self.difficulty = Difficulty(self.num_classes)
        self.average = MovingAverage(self.network) if self.config.ema > 0 else None

    def load_encoder(self, weights: Mapping[str, Tensor]) -> None:
        """Load a published Mix Transformer (ImageNet or SegFormer names), strictly."""
        if not isinstance(self.network, MessengerSegFormer):
            raise MethodError(
                f"sdmessenger: encoder '{self.plan.encoder}' has no published weights; plan with "
                "'--encoder mit_b0' to 'mit_b5', or with '--encoder-weights none'."
            )
        load_encoder(self.network.encoder, weights, where=str(self.plan.encoder_weights))
        if self.average is not None:
            self.average = MovingAverage(self.network)

    def phases(self) -> Sequence[Phase]:
        training, patch_size, config = self.plan.training, self.plan.patch_size, self.config
        spatial = Spatial.for_patch(patch_size)
        odds, degrees = config.turning, min(spatial.degrees, DEGREES)
        spatial = replace(spatial, rotation_probability=odds, scaling_probability=odds, degrees=degrees)
        weak = Augmentation(patch_size=patch_size, mirror_axes=(), keeps_slices=self.plan.dims == 2)
        augment: Augment = (
            WeakAndStrong(weak, contrast=config.contrast, match=config.match) if config.strong_view else weak
        )
        sample: Sampler = Labelled(patch_size, spatial=spatial)
        if config.learn_from_unlabelled:
            sample = LabelledAndUnlabelled(patch_size, spatial=spatial)
            sample = DrawsPaste(DrawsHistogram(sample) if config.match > 0 else sample)
        return (
            Phase(
                name="train",
                num_steps=training.iterations,
                batch_size=training.batch_size,
                sample=sample,
                augment=augment,
                schedule=WarmupThenPoly(LR_WARMUP if config.optimizer == "adamw" else 0.0),
            ),
        )

    def optimizers(self, phase: str) -> dict[str, Optimizer]:
        training, name = self.plan.training, self.config.optimizer
        encoder = list(self.network.encoder.parameters())
        parts = (self.network.messengers, self.network.decoder)
        rest = [parameter for part in parts for parameter in part.parameters()]
        factor = HEAD_LR_FACTOR if isinstance(self.network, MessengerSegFormer) else 1.0
        groups: list[dict[str, Any]] = [{"params": encoder}, {"params": rest, "lr": training.lr * factor}]
        lr, decay = training.lr, training.weight_decay
        return {"main": adamw_or_sgd(name, groups, lr=lr, weight_decay=decay, momentum=MOMENTUM)}

    def training_step(self, batch: Batch, update: Update, at: Progress) -> dict[str, Tensor]:
        config, strength = self.config, self.strength(at.fraction)
        exchanges = config.learn_from_unlabelled and (strength > 0 or self._warms_up_with_exchange)
        if not exchanges:
            terms = {"supervised": self._supervised(self.network(batch["image"]), batch["label"])}
        else:
            terms = self._terms(batch, learns=strength > 0)
        loss = terms["supervised"]
        if "pseudo" in terms:
            loss = loss + strength * config.unsupervised_weight * terms["pseudo"]
            loss = loss + strength * config.consistency_weight * terms["consistency"]
        update.minimise(loss)
        if self.average is not None:
            self.average.update(self.network, decay=decay_at(config.ema, at.step, at.num_steps))
        return {name: term.detach() for name, term in {"loss": loss, **terms}.items()}

    def footprint_step(self, batch: Batch, update: Update, at: Progress) -> None:
        # The first steps are cheaper: there are no unsupervised terms yet.
        self.training_step(batch, update, replace(at, step=at.num_steps - 1))

    def predictor(self, case: Case, support: Sequence[Case]) -> Predictor:
        return lambda patches, corners, flipped=(): self._evaluate(patches).float()

    def strength(self, fraction: float) -> float:
        """Return the factor of the unsupervised terms, in [0, 1], at a fraction of the training."""
        least = min(0.75, self.config.warmup_steps / self.plan.training.iterations)
        beyond = fraction - max(self.config.warmup, least)
        risen = beyond / self.config.ramp if self.config.ramp > 0 else 1.0
        return 0.0 if beyond < 0 else min(1.0, risen)

    def _terms(self, batch: Batch, *, learns: bool) -> dict[str, Tensor]:
        """Return the losses of labelled patches and, if it `learns` from them too, of unlabelled ones."""
        image, codes, num_labelled = batch["image"], batch["label"], len(batch["image"])
        mask, compared = self.pasting.masks(codes, batch["paste"])
        weak = batch["unlabelled_image"]
        strong = batch["strong_unlabelled_image"] if "strong_unlabelled_image" in batch else weak
        unlabelled = paste(strong, image, mask)
        outputs = self.network(torch.cat([image, unlabelled]), num_labelled, only_labelled=not learns)
        known = [logits[:num_labelled] for logits in outputs]
        terms = {"supervised": self._supervised(known, codes)}
        if not learns:
            return terms
        unknown = [logits[num_labelled:] for logits in outputs]
        pseudo = paste(self._pseudo_labels(weak), codes.long(), mask)
        against = partial(pseudo_label_loss, compat=self.config.compat)
        return terms | {
            "pseudo": deep_supervision(against, unknown, pseudo),
            "consistency": paste_consistency(known[0].float(), unknown[0].float(), compared),
            "kept": (pseudo != IGNORE).float().mean(),
        }

    def _evaluate(self, image: Tensor) -> Tensor:
        outputs = self.network(image) if self.average is None else self.average.call(self.network, image)
        logits: Tensor = outputs[0]
        return logits

    @torch.no_grad()
    def _pseudo_labels(self, image: Tensor) -> Tensor:
        # In eval mode, so that neither dropout nor batch statistics are touched by this pass.
        self.network.eval()
        with shared_batch(self.network, shares=self.config.compat):
            logits = self._evaluate(image).float()
        self.network.train()
        return pseudo_labels(logits, threshold=self.config.threshold)

    def _supervised(self, outputs: Sequence[Tensor], codes: Tensor) -> Tensor:
        weights = None
        if self.config.class_weights:
            predicted = outputs[0].detach().argmax(1)
            dice = hard_dice(predicted, codes, self.num_classes, compat=self.config.compat)
            weights = self.difficulty(dice)

        loss = partial(
            supervised_loss,
            weights_K=weights,
            has_dice=not self.config.compat,
            pools_batch=self.plan.dims == 2,
        )
        return deep_supervision(loss, outputs, codes)


METHOD = SDMessenger
