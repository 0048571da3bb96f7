"""The reference: a self-configured residual-encoder U-Net that learns from labelled cases alone.

Paper: Isensee et al. 2021, doi:10.1038/s41592-020-01008-z (nnU-Net), with the residual encoder of Isensee et
al. 2024, arXiv:2404.09556. Official code: Apache-2.0; read, not copied.

| paper                         | here                                                  |
|-------------------------------|-------------------------------------------------------|
| weight decay 3e-5             | `training.weight_decay`                               |
| SGD, Nesterov momentum 0.99   | `config.optimizer`, `config.momentum`                 |
| initial learning rate 0.01    | `training.lr`                                         |
| (1 - t/T)^0.9                 | the phase's schedule, after `config.warmup`           |
| a third of patches foreground | `config.oversample`                                   |
| 1000 epochs of 250 steps      | `training.iterations`, 25,000 unless changed          |

Differs: AdamW at a tenth of the rate, after a warm-up, because SGD with that momentum learns next to nothing
in the first few hundred steps (docs/results.md). nnU-Net's own way is ``config.optimizer=sgd``,
``config.warmup=0`` and ``--lr 0.01``. The schedule falls with every step rather than every epoch; there are a
tenth of nnU-Net's steps by default.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor
from torch.optim import Optimizer

from medplan.errors import MethodError
from medplan.learning.losses import SegmentationLoss, deep_supervision
from medplan.learning.optimisers import OptimizerName, adamw_or_sgd
from medplan.learning.schedules import WarmupThenPoly
from medplan.method import Batch, Method, Needs, Phase, Predictor, Progress, Proposal, Situation, Update
from medplan.networks.unet import UNet
from medplan.plan.schema import Plan
from medplan.records import decode
from medplan.samples.augment import Augmentation
from medplan.samples.cases import Case
from medplan.samples.sampling import Labelled
from medplan.samples.spatial import Spatial

__all__ = ["METHOD", "Config", "Supervised"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Numbers of the reference method; the defaults are nnU-Net's but for the optimiser.

    Attributes:
        balance: weight of a cross-entropy in which every class weighs the same, for classes that exclude each
            other: in a short training small ones are found earlier.
        optimizer: ``adamw``, or ``sgd`` with Nesterov's momentum as in nnU-Net.
        warmup: part of the training, in [0, 1), over which the learning rate rises.
        momentum: of SGD.
        oversample: share of the patches that are centred on foreground, in [0, 1].
        deep_supervision: learn at every resolution of the decoder but the coarsest.
        batch_dice: pool the Dice over the batch; None does so in 2-D.
        mirror_axes: axes (0 z, 1 y, 2 x) that patches are flipped along at random; None takes all, but for x
            where the names of classes tell left from right.
    """

    balance: float = 0.0
    optimizer: OptimizerName = "adamw"
    warmup: float = 0.05
    momentum: float = 0.99
    oversample: float = 1 / 3
    deep_supervision: bool = True
    batch_dice: bool | None = None
    mirror_axes: tuple[int, ...] | None = None


class Supervised(Method):
    """See the module."""

    needs = Needs(dims=(3, 2), roles=("labelled",), encoders=("unet",), pyramid=True)
    Config = Config

    @classmethod
    def propose(cls, situation: Situation) -> Proposal:
        """Fit wherever there are labels; best where there is nothing but labels."""
        if situation.num_labelled == 0:
            return Proposal(fits=False, score=0, reason="there is no labelled case to learn from")
        if situation.num_datasets > 1:
            return Proposal(fits=False, score=0, reason="it learns one dataset at a time")
        if situation.num_unlabelled == 0 and len(situation.domains) < 2:
            return Proposal(fits=True, score=60, reason="every case is labelled")
        if situation.num_unlabelled == 0:
            return Proposal(
                fits=True, score=40, reason="every case is labelled, but they come from several domains"
            )
        return Proposal(
            fits=True,
            score=20,
            reason=f"the reference; it leaves {situation.num_unlabelled} unlabelled cases unused",
        )

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        if plan.pyramid is None or len(plan.datasets) != 1:
            raise MethodError(
                f"supervised: plan '{plan.name}' should have one dataset and a 'pyramid'; plan it again."
            )
        self.plan = plan
        self.config = decode(Config, plan.config, where=f"plan '{plan.name}' config")
        labels = plan.datasets[0].labels
        self.network = UNet(
            plan.num_channels,
            plan.pyramid,
            labels.num_outputs,
            plan.dims,
            deep_supervision=self.config.deep_supervision,
        )
        chosen = self.config.mirror_axes
        self.mirror_axes = plan.mirror_axes(plan.datasets[0]) if chosen is None else chosen
        batch_dice = plan.dims == 2 if self.config.batch_dice is None else self.config.batch_dice
        self.loss = SegmentationLoss(labels, batch_dice=batch_dice)

    def phases(self) -> Sequence[Phase]:
        plan, patch_size = self.plan, self.plan.patch_size
        spatial = Spatial.for_patch(patch_size)
        train = Phase(
            name="train",
            num_steps=plan.training.iterations,
            batch_size=plan.training.batch_size,
            sample=Labelled(patch_size, self.config.oversample, spatial=spatial),
            augment=Augmentation(
                patch_size=patch_size, mirror_axes=self.mirror_axes, keeps_slices=spatial.in_plane
            ),
            schedule=WarmupThenPoly(self.config.warmup),
        )
        return (train,)

    def optimizers(self, phase: str) -> dict[str, Optimizer]:
        training, config = self.plan.training, self.config
        optimizer = adamw_or_sgd(
            config.optimizer,
            self.network.parameters(),
            lr=training.lr,
            weight_decay=training.weight_decay,
            momentum=config.momentum,
            nesterov=config.momentum > 0,
        )
        return {"main": optimizer}

    def training_step(self, batch: Batch, update: Update, at: Progress) -> dict[str, Tensor]:
        outputs = self.network(batch["image"])
        compare = partial(self.loss, balance=self.config.balance)
        loss = deep_supervision(compare, outputs, batch["label"])
        update.minimise(loss)
        return {"loss": loss.detach()}

    def predictor(self, case: Case, support: Sequence[Case]) -> Predictor:
        return lambda patches, corners, flipped=(): self.network(patches)[0].float()


METHOD = Supervised
