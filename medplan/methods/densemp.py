"""DenseMP: dense pre-training without labels, then few-shot segmentation of classes never seen in training.

Paper: Fan et al., "DenseMP: Unsupervised Dense Pre-training for Few-shot Medical Image Segmentation",
arXiv:2307.09604. Official code: github.com/zhaoxinf/DenseMP_release, no licence stated (it contains DenseCL,
GPL-3.0, and SSL-ALPNet, MIT); read, not copied.

Three phases: ``contrastive`` learns the backbone from pictures, ``superpixel`` the whole network from
superpixels that stand in for organs, ``finetune`` adds the labels of the classes that are not novel. A new
class is then shown by a labelled case.

| paper or released code                          | here                                                    |
|-------------------------------------------------|---------------------------------------------------------|
| stage 1: ROCO, 50 epochs, 32 pictures of 224    | role `pretrain`, `shares`, `contrastive_*`              |
| lr 0.3 x batch / 256, cosine, weight decay 1e-4 | `contrastive_lr`                                        |
| queues, momentum, tau 0.2, lambda 0.5           | `queue_length`, `key_momentum`                          |
| stage 2: 100,100 steps, lr 1e-3, x 0.95 / 1000  | `shares`, `training.lr`, `optimizer`                    |
| fine-tuning: 5,100 steps, lr 1e-4, 25 % manual  | `shares`, `finetune_lr`, `manual_share`                 |
| windows 4 / 2, threshold 0.95, scale 20         | 4, `eval_window`, `networks.prototypes`                 |
| class weights 0.05 / 1, alignment loss x 1      | `networks.prototypes.episode_loss`                      |
| transforms of the views                         | `samples.episodes`                                      |
| settings 1 and 2, label groups                  | `setting`, `DatasetPlan.novel` (``--novel``)            |
| 3 parts, 1 shot                                 | `samples.slices.PARTS`, role `support`                  |

Differs: masks are shrunk by area, so that small ones do not vanish (``mask_resize`` "bilinear" is the
original's); an example without a full background cell is used, not skipped; keys are normalised in random
groups instead of being shuffled among processes, and the queues hold the first process's keys; views are
standardised one by one; AdamW with a warm-up instead of SGD (`optimizer`). Classes that are novel choose no
checkpoint.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from medplan.errors import MethodError
from medplan.learning.optimisers import OptimizerName, adamw_or_sgd
from medplan.learning.schedules import StepDecay, WarmupThenPoly, cosine
from medplan.method import (
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
from medplan.networks.dense_contrast import DenseContrast, queue_length
from medplan.networks.dilated_resnet import SIZES, FewShotEncoder, OutputStride, load_published
from medplan.networks.few_shot import Correspondence, FewShotPredictor
from medplan.networks.prototypes import Classifier, Shrink, episode_loss
from medplan.plan.schema import Plan
from medplan.preprocess.superpixels import Superpixels
from medplan.records import decode
from medplan.samples.cases import Case
from medplan.samples.contrast import TwoViews
from medplan.samples.episodes import (
    LabelledEpisodes,
    MixedEpisodes,
    Slices,
    SuperpixelEpisodes,
    gamma_of_views,
)

__all__ = ["METHOD", "Config", "DenseMP"]

MULTIPLE = 32
LARGEST_SIDE = 256
TARGET_MM = 1.5
WARMUP = 0.05
TRAIN_WINDOW = 4
DENSE_SHARE = 0.5
CONTRASTIVE_WEIGHT_DECAY = 1e-4
LARGE_BYTES, FEW_PICTURES_BYTES = 4.5 * 2**30, 2 * 2**30
"""ResNet-101 takes less than the first with 32 pictures per step, the small encoder less than the second."""
MOMENTUM = 0.9


@dataclass(frozen=True, kw_only=True)
class Config:
    """Numbers of DenseMP. "Released" means the official code of 2023.

    Attributes:
        shares: of the iterations for the phases contrastive, superpixel and finetune; 0 leaves one out.
            Released: 102,250, 100,100 and 5,100 steps.
        setting: 2 learns from no slice that shows a novel class; 1 from all, without its labels. Released:
            both.
        prototypes: ``alp`` local and global (released), ``global`` alone (PANet).
        mask_resize: how masks come to the feature grid. Differs: released ``bilinear``.
        eval_window: side of local prototypes in cells of 8 pixels. Released: 2, and 4 in training.
        manual_share: share of episodes of labelled classes when fine-tuning. Released: 0.25.
        contrastive_batch, contrastive_side, contrastive_stride: pictures per step, pixels of a view, output
            stride of the backbone. Released: 32, 224 and 32.
        contrastive_lr: for 256 pictures per step, of which a batch gets its part. Released: 0.3.
        queue_length: negatives, no more than there are pictures. Released: 65,536.
        key_momentum: share of the old key weights that a step keeps. Released: 0.999.
        hidden: channels inside the projections; None takes the backbone's. Released: 2048, the backbone's.
        optimizer: of the episodes: ``adamw`` with a warm-up, or ``sgd`` with steps of 0.95. Differs: released
            SGD, which learns a third less in a few hundred episodes.
        finetune_lr: released: 1e-4.
        correspondence: which slice of an example serves a slice: the one that a ``fit`` of the scans puts
            there, that at the same relative ``position`` in the body, or the one of best ``similarity``.
            Differs: released with the true extent.
        per_mm, per_look: with ``fit``: what a score gains per millimetre inside the outline that is carried
            over, and how much it counts that a pixel looks like the inside of it.
    """

    shares: tuple[float, float, float] = (0.49, 0.485, 0.025)
    setting: Literal[1, 2] = 2
    prototypes: Literal["alp", "global"] = "alp"
    mask_resize: Shrink = "area"
    eval_window: int = 2
    manual_share: float = 0.25
    contrastive_batch: int = 32
    contrastive_side: int = 224
    contrastive_stride: OutputStride = 32
    contrastive_lr: float = 0.3
    queue_length: int = 65_536
    key_momentum: float = 0.999
    hidden: int | None = None
    optimizer: OptimizerName = "adamw"
    finetune_lr: float = 1e-4
    correspondence: Correspondence = "fit"
    per_mm: float = 0.3
    per_look: float = 3.0

    def __post_init__(self) -> None:
        if min(self.shares) < 0 or self.shares[0] == sum(self.shares):
            raise ValueError(f"'shares' {self.shares} should not be negative, and the last two not both 0")
        for name in ("manual_share", "key_momentum"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"'{name}' should be in [0, 1], found {getattr(self, name)}")
        for name in ("eval_window", "contrastive_batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"'{name}' should be at least 1, found {getattr(self, name)}")


class DenseMP(Method):
    """See the module."""

    needs = Needs(
        dims=(2,),
        roles=("support",),
        optional_roles=("labelled",),
        encoders=tuple(SIZES),
        patch_multiple=MULTIPLE,
        new_classes=True,
    )
    Config = Config

    @classmethod
    def propose(cls, situation: Situation) -> Proposal:
        """Fit where a case is labelled, to show the classes; best where some are novel."""
        if situation.num_datasets > 1:
            return Proposal(fits=False, score=0, reason="it learns one dataset at a time")
        if situation.num_labelled == 0:
            return Proposal(fits=False, score=0, reason="there is no labelled case to show the classes")
        steps = situation.spacing_mm or (TARGET_MM,) * 3
        sides = [n * step / TARGET_MM for n, step in zip(situation.median_shape[1:], steps[1:], strict=True)]
        whole = max(64, math.ceil(max(sides) / MULTIPLE) * MULTIPLE)
        side = min(LARGEST_SIDE, whole)
        novel, memory = situation.has_novel_classes, situation.memory_bytes or LARGE_BYTES
        is_small = memory < LARGE_BYTES and situation.encoder_weights is None
        few = {"contrastive_batch": 8} if memory < FEW_PICTURES_BYTES else {}
        why = {"encoder": "resnet101, the paper's, takes more memory than there is"} if is_small else {}
        if few:
            why["config.contrastive_batch"] = "released: 32, which take more memory than there is"
        return Proposal(
            fits=True,
            score=90 if novel else 10,
            reason="there are classes that no training label shows"
            if novel
            else "it is made for classes that are shown after training, by an example",
            encoder="small" if is_small else None,
            config=few,
            iterations=21_000,
            batch_size=1,
            lr=1e-3,
            weight_decay=5e-4,
            patch_size=(1, side, side),
            extra={"superpixels": asdict(Superpixels())},
            reasons={
                "iterations": "a tenth of the released schedule",
                "batch_size": "one episode per step, as released",
                "config.optimizer": "AdamW after a warm-up: in few episodes SGD learns a third less",
                "patch_size": "a whole slice" if side == whole else "256 pixels of larger slices",
                **why,
            },
        )

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        if len(plan.learned) != 1 or not plan.learned[0].labels.is_exclusive:
            raise MethodError(
                f"densemp: plan '{plan.name}' should have one dataset besides those to pretrain on, with "
                "classes that exclude each other."
            )
        self.plan, self.dataset = plan, plan.learned[0]
        self.config = config = decode(Config, plan.config, where=f"plan '{plan.name}' config")
        size = SIZES[plan.encoder]
        self.channels = 3 if plan.num_channels == 1 else plan.num_channels
        self.encoder = FewShotEncoder(size, in_channels=self.channels)
        names = self.dataset.labels.names
        self.seen = tuple(code for code, name in enumerate(names, 1) if name not in self.dataset.novel)
        self.steps = self._steps()
        self.contrast: DenseContrast | None = None
        if "contrastive" in self.steps:
            self.contrast = DenseContrast(
                self.encoder.backbone,
                channels=size.out_channels,
                queue_length=queue_length(
                    len(plan.roles(0).get("pretrain", ())),
                    asked=config.queue_length,
                    batch_size=config.contrastive_batch,
                ),
                momentum=config.key_momentum,
                hidden=config.hidden,
            )

    def load_encoder(self, weights: Mapping[str, Tensor]) -> None:
        """Load a ResNet of torchvision, MoCo, DenseCL or DenseMP, or what a phase of a run left."""
        load_published(self.encoder, weights, where=str(self.plan.encoder_weights))
        if self.contrast is not None:
            self.contrast.restart(self.encoder.backbone)

    def phases(self) -> Sequence[Phase]:
        config, patch_size = self.config, self.plan.patch_size
        novel = [code for code in range(1, self.dataset.labels.num_outputs) if code not in self.seen]
        without = {self.dataset.name: tuple(novel)} if config.setting == 2 and novel else {}
        roles: tuple[str, ...] = ("labelled", "unlabelled")
        if not any(self.dataset.folds[0].get(role) for role in roles):
            roles = ("support",)
        slices = Slices(roles, without)
        superpixels = SuperpixelEpisodes(patch_size, slices)
        labelled = LabelledEpisodes(
            patch_size, Slices(("labelled",), without), {self.dataset.name: self.seen}
        )
        samplers: dict[str, Sampler] = {
            "contrastive": TwoViews(config.contrastive_side, self.plan.num_channels, slices),
            "superpixel": superpixels,
            "finetune": MixedEpisodes(labelled, superpixels, config.manual_share),
        }
        # Released: 0.95 per 1000 steps, of 100,000 and of 5,000.
        released = {"superpixel": StepDecay(100), "finetune": StepDecay(5)}
        schedules = released if config.optimizer == "sgd" else dict.fromkeys(released, WarmupThenPoly(WARMUP))
        return [
            Phase(
                name=name,
                num_steps=steps,
                batch_size=config.contrastive_batch
                if name == "contrastive"
                else self.plan.training.batch_size,
                sample=samplers[name],
                augment=None if name == "contrastive" else gamma_of_views(patch_size),
                schedule=schedules.get(name, cosine),
                validate=name == list(self.steps)[-1],
            )
            for name, steps in self.steps.items()
        ]

    def optimizers(self, phase: str) -> dict[str, Optimizer]:
        config, training = self.config, self.plan.training
        if phase == "contrastive":
            assert self.contrast is not None
            parameters = [*self.encoder.backbone.parameters(), *self.contrast.head.parameters()]
            lr, decay = config.contrastive_lr * config.contrastive_batch / 256, CONTRASTIVE_WEIGHT_DECAY
            optimizer: OptimizerName = "sgd"
        else:
            parameters, decay = list(self.encoder.parameters()), training.weight_decay
            lr = training.lr if phase == "superpixel" else config.finetune_lr
            optimizer = config.optimizer
        return {"main": adamw_or_sgd(optimizer, parameters, lr=lr, weight_decay=decay, momentum=MOMENTUM)}

    def training_step(self, batch: Batch, update: Update, at: Progress) -> dict[str, Tensor]:
        if at.phase == "contrastive":
            return self._contrast(batch, update)
        pictures = torch.cat([batch["support_image"][:, :, 0], batch["query_image"][:, :, 0]])
        support, query = self.encode(pictures).chunk(2)
        terms = episode_loss(
            self.classifier(TRAIN_WINDOW),
            support,
            query,
            batch["support_label"][:, 0],
            batch["query_label"][:, 0],
            shrink_by=self.config.mask_resize,
        )
        update.minimise(terms["loss"])
        return {name: value.detach() for name, value in terms.items()}

    def predictor(self, case: Case, support: Sequence[Case]) -> Predictor:
        shown = case.prompts.get("classes")
        if not any(other.codes is not None for other in support):
            raise MethodError(
                f"densemp: nothing shows the classes of case '{case.key}'; give an example with --support."
            )
        return FewShotPredictor(
            self.encode,
            self.classifier(self.config.eval_window),
            case,
            [other for other in support if other.codes is not None],
            num_outputs=self.dataset.labels.num_outputs if shown is None else len(shown) + 1,
            correspondence=self.config.correspondence,
            per_mm=self.config.per_mm,
            per_look=self.config.per_look,
            shrink_by=self.config.mask_resize,
        )

    def encode(self, pictures_BCYX: Tensor) -> Tensor:
        """Return features (B, C, Y / 8, X / 8); a grey picture is shown three times."""
        features: Tensor = self.encoder(pictures_BCYX.expand(-1, self.channels, -1, -1))
        return features

    def classifier(self, window: int) -> Classifier:
        """Return what compares features, with local prototypes of that window."""
        return Classifier(window=window, local=self.config.prototypes == "alp")

    def _contrast(self, batch: Batch, update: Update) -> dict[str, Tensor]:
        assert self.contrast is not None
        pictures = (batch[name][:, :, 0] for name in ("first_view", "second_view"))
        views = (picture.expand(-1, self.channels, -1, -1) for picture in pictures)
        whole, cells = self.contrast.losses(
            self.encoder.backbone, *views, output_stride=self.config.contrastive_stride
        )
        loss = (1 - DENSE_SHARE) * whole + DENSE_SHARE * cells
        update.minimise(loss)
        return {"loss": loss.detach(), "global": whole.detach(), "dense": cells.detach()}

    def _steps(self) -> dict[str, int]:
        total, shares = self.plan.training.iterations, list(self.config.shares)
        if not self.seen or not any(fold.get("labelled") for fold in self.dataset.folds):
            shares[1:] = [shares[1] + shares[2], 0.0]
        ends = [round(total * sum(shares[: n + 1]) / sum(shares)) for n in range(3)]
        names = ("contrastive", "superpixel", "finetune")
        steps = dict(zip(names, (ends[0], ends[1] - ends[0], ends[2] - ends[1]), strict=True))
        return {name: number for name, number in steps.items() if number} or {"superpixel": total}


METHOD = DenseMP
