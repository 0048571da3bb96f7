"""Hermes: one network for many datasets, each with its own organs, modality and partial labels.

Paper: Gao, Li, Liu, Zhou, Zhang, Metaxas, "Training Like a Medical Resident: Context-Prior Learning Toward
Universal Medical Image Segmentation", CVPR 2024, arXiv:2306.02416. Official code:
github.com/yhygao/universal-medical-image-segmentation, no licence seen; read about, not copied.

Every class of every dataset is a task with learned tokens, every modality has some too; tokens and image look
at each other (`medplan.networks.prior_attention`), and the task tokens become classifiers of voxels.

| released code                              | here                                                        |
|--------------------------------------------|-------------------------------------------------------------|
| hermes_resunet_3d, hermes_medformer_3d     | `Plan.encoder`: ``residual``, ``medformer``                 |
| base channels, stages                      | `channels`                                                  |
| fusion depth 2,2,4,2,2; 2,4,8,4,2          | `depths`                                                    |
| 10 tokens per modality                     | `modality_tokens`                                           |
| literal lists of tasks and modalities      | `tasks`, `modalities`: kept in the plan, by name            |
| weight per image                           | `DatasetPlan.share`                                         |
| LAMB, lr 2e-3, weight decay 1e-5; M: 5e-2  | `training.lr`, `training.weight_decay`, `eps`               |
| warm-up of 5 of 200 epochs; M: none        | `warmup`                                                    |
| EMA 0.99                                   | `ema`                                                       |
| modality loss x 0.01                       | `modality_weight`                                           |

Answers: tasks are independent sigmoids. For classes that exclude each other the background gets the logit 0,
so that a voxel belongs to its most probable task, if that is more probable than not. For regions each task is
its region, and `LabelSpace.region_order` says which is painted over which.

Differs: empty task slots are masked in attention; a task absent from a patch has no Tversky loss, which added
a constant; the loss is divided by the expected number of tasks, a constant, not by that of the batch; a share
of the images is shown as of unknown modality (the loss still asks for it); the warm-up is twice as long; the
schedule falls with every step rather than every epoch; a third of the patches is centred on foreground; in
steps of one patch the padding around small images is cut off; spatial augmentation is that of every method
here; inputs are normalised as the plan says. ``compat`` brings back the first four.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import EllipsisType
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from medplan.checkpoint import restore
from medplan.errors import MethodError
from medplan.learning.lamb import Lamb
from medplan.learning.schedules import WarmupThenPoly, decay_at
from medplan.learning.task_losses import TaskLoss
from medplan.learning.tasks import (
    added_tasks,
    append_new,
    begins_as,
    expected_tasks,
    modalities_of,
    modality_of_case,
    named,
    task_names,
)
from medplan.method import (
    Batch,
    Heatmap,
    Method,
    Needs,
    Phase,
    Predictor,
    Progress,
    Proposal,
    Situation,
    Update,
)
from medplan.networks.average import MovingAverage
from medplan.networks.medformer import MedFormer
from medplan.networks.prior_transfer import Transfer, learning, translate
from medplan.networks.prior_unet import PriorOutput, PriorShape, PriorUNet
from medplan.networks.prior_weights import PUBLISHED_MODALITIES, PUBLISHED_TASKS, from_published
from medplan.plan.schema import DatasetPlan, Plan
from medplan.records import decode, encode
from medplan.samples.augment import Augmentation
from medplan.samples.cases import Case
from medplan.samples.sampling import Labelled, Mixture
from medplan.samples.spatial import Spatial
from medplan.samples.task_patches import TaskPatches, filled

__all__ = ["METHOD", "Config", "Hermes"]

DEPTHS = {"residual": (2, 2, 4, 2, 2), "medformer": (2, 4, 8, 4, 2)}
SMALL = {"channels": (16, 32, 48, 64, 64), "depths": (1, 1, 1, 1, 1), "head_size": 16}
PATCH_OF_SMALL = (32, 48, 48)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Numbers of Hermes. "Released" means the official code of June 2024.

    Attributes:
        tasks: ``<dataset>/<class>`` by number; the planner appends what is missing.
        shared: per dataset another one whose tasks its classes are. Released: AMOS MR has those of AMOS CT.
        modalities: by number; the planner appends what is missing. Images of others count as unknown.
        channels: per level, finest first; tokens are met from the third level on.
        depths: blocks where tokens are met, down and up again. None takes the released depths.
        head_size: channels per attention head.
        modality_tokens: of each modality.
        transfer: what learns when training starts from another run: ``full`` everything; ``priors`` the
            tokens of new tasks, those of modalities and the heads; ``incremental`` the tokens of new tasks
            alone, so that other datasets are answered exactly as before. Source: ours; none is published.
        new_datasets: those that the other run has not learnt, which ``plan --from`` fills in: with ``priors``
            and ``incremental`` the only ones that are drawn from; empty for all of the plan.
        patch_weight: a patch weighs its number of tasks to this power: 1 for all tasks alike, 0 all patches.
        modality_weight: of the modality loss.
        hide_modality: share of the images shown as of unknown modality. Released: 0.
        eps: of LAMB.
        warmup: fraction of the steps in which the rate rises. Released: 5 of 200 epochs, Hermes-M 0.
        ema: decay of the weights that predict; less than that in trainings of fewer than 5000 steps.
        oversample: share of the patches centred on foreground. Released: 0.
        recompute: trade a third more time for less memory (activation checkpointing).
        compat: as released: empty slots are looked at, an absent task costs 1 whatever is predicted, the loss
            is the mean over the slots of the batch, no modality is hidden.
    """

    tasks: tuple[str, ...] = ()
    shared: dict[str, str] = field(default_factory=dict)
    modalities: tuple[str, ...] = ()
    channels: tuple[int, ...] = (32, 64, 128, 256, 320)
    depths: tuple[int, ...] | None = None
    head_size: int = 32
    modality_tokens: int = 10
    transfer: Transfer = "full"
    new_datasets: tuple[str, ...] = ()
    patch_weight: float = 1.0
    modality_weight: float = 0.01
    hide_modality: float = 0.1
    eps: float = 1e-5
    warmup: float = 0.05
    ema: float = 0.99
    oversample: float = 1 / 3
    recompute: bool = False
    compat: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.warmup < 1 or not 0 <= self.ema < 1 or not 0 <= self.hide_modality <= 1:
            raise ValueError("'warmup', 'ema' and 'hide_modality' are parts of 1")


class Hermes(Method):
    """See the module."""

    needs = Needs(
        dims=(3,),
        roles=("labelled",),
        encoders=("residual", "medformer"),
        patch_multiple=16,
        several_datasets=True,
        told_modality=True,
    )
    Config = Config

    @classmethod
    def propose(cls, situation: Situation) -> Proposal:
        """Fit labelled volumes; best for several datasets."""
        if situation.num_labelled == 0 or situation.is_picture:
            lack = "these are pictures" if situation.is_picture else "there is none"
            return Proposal(fits=False, score=0, reason=f"it learns from labelled volumes, and {lack}")
        several = situation.num_datasets > 1
        # Published weights have the published sizes.
        has_sizes = situation.like is not None or situation.encoder_weights is not None
        memory = situation.memory_bytes or 2**40
        is_small = memory < 2**32 and not has_sizes
        is_hurried = is_small and memory < 2**31
        is_m = situation.encoder == "medformer"
        config: Mapping[str, Any] = SMALL if is_small else {}
        reasons = {"iterations": "200 epochs of 400 steps, as released", "lr": "as released"}
        reasons["weight_decay"] = f"as released for Hermes-{'M' if is_m else 'R'}"
        if several:
            reasons["grid.spacing_mm"] = "1.5 mm for all datasets, as released"
            reasons["batch_size"] = "a step should see several datasets; released: 16 on 8 GPUs"
        if situation.like is not None:
            learnt = {dataset.name for dataset in situation.like.datasets}
            new = [name for name in situation.datasets if name not in learnt]
            sizes = {key: situation.like.config[key] for key in (*SMALL, "modality_tokens")}
            config = {**sizes, "new_datasets": new}
            reasons["config.channels"] = "the network of the run that training starts from"
        if is_small:
            why = "where memory is for small networks"
            reasons["config.channels"] = f"half of the released, {why}"
            if is_hurried:
                reasons |= dict.fromkeys(("batch_size", "patch_size"), f"small, for many steps, {why}")
        return Proposal(
            fits=True,
            score=90 if several else 30,
            reason=f"one network for {situation.num_datasets} datasets with {situation.num_classes} classes"
            if several
            else "made for several datasets; with one it is a U-Net with learned classifiers",
            iterations=80_000,
            lr=2e-3,
            weight_decay=5e-2 if is_m else 1e-5,
            batch_size=1 if is_hurried else 4 if several else None,
            patch_size=PATCH_OF_SMALL if is_hurried and several else None,
            spacing_mm=(1.5, 1.5, 1.5) if several else None,
            config=config,
            reasons=reasons,
        )

    @classmethod
    def settle(cls, plan: Plan) -> Plan:
        """Give every task and modality its number."""
        config = _with_names(decode(Config, plan.config, where=f"plan '{plan.name}' config"), plan)
        reasons = {
            "config.tasks": f"{len(config.tasks)} classes in all, numbered once",
            "config.modalities": "from the names of channels and domains; others count as unknown",
        }
        return replace(plan, config=encode(config), reasons={**plan.reasons, **reasons})

    @classmethod
    def lighter(cls, plan: Plan) -> Plan | None:
        """Compute activations twice, but not those of small networks, which are for where time is short."""
        if plan.config["recompute"] or plan.config["channels"][0] < Config.channels[0]:
            return None
        return replace(plan, config={**plan.config, "recompute": True})

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self.plan = plan
        config = decode(Config, plan.config, where=f"plan '{plan.name}' config")
        self.config = config = _with_names(config, plan)
        if not config.shared.keys() <= {dataset.name for dataset in plan.datasets}:
            raise MethodError(f"hermes: 'shared' names datasets that are not in plan '{plan.name}'.")
        self.task_ids = tuple(
            tuple(config.tasks.index(name) for name in task_names(dataset, config.shared))
            for dataset in plan.datasets
        )
        num_added = len(added_tasks(config.tasks, plan.datasets, _new_datasets(config, plan), config.shared))
        shape = PriorShape(
            num_channels=plan.num_channels,
            channels=config.channels,
            depths=config.depths or DEPTHS[plan.encoder],
            head_size=config.head_size,
            num_tasks=len(config.tasks) - num_added,
            num_added=num_added,
            num_modalities=len(config.modalities),
            num_tokens=config.modality_tokens,
            masks_null=not config.compat,
            recomputes=config.recompute,
        )
        self.network = PriorUNet(shape) if plan.encoder == "residual" else MedFormer(shape)
        self.average = MovingAverage(self.network)
        self.num_slots = max(map(len, self.task_ids)) + config.compat  # released: one is always empty
        self.loss = TaskLoss(
            [dataset.labels for dataset in plan.datasets],
            num_slots=self.num_slots,
            skips_absent=not config.compat,
            expected=None if config.compat else expected_tasks(self._learnt(), power=config.patch_weight),
            power=config.patch_weight,
        )

    def load_encoder(self, weights: Mapping[str, Tensor]) -> None:
        """Load the published network, strictly; tokens are taken over as in `start_from`."""
        state, where = from_published(weights, self.network), str(self.plan.encoder_weights)
        self._take_over(state, tasks=PUBLISHED_TASKS, modalities=PUBLISHED_MODALITIES, where=where)

    def start_from(self, weights: Mapping[str, Tensor], plan: Plan, *, where: str) -> None:
        """Take over what another run predicts with; tokens of a new task are those of `begins_as`."""
        if plan.method != self.plan.method:
            raise MethodError(f"{where}: was trained with '{plan.method}', not with '{self.plan.method}'.")
        config = _with_names(decode(Config, plan.config, where=where), plan)
        if plan.grid != self.plan.grid:
            logger.warning(
                "%s: learnt on another grid than that of '%s'; plan with --from.", where, self.plan.name
            )
        averaged = MovingAverage.saved(weights, "average")
        self._take_over(averaged, tasks=config.tasks, modalities=config.modalities, where=where)

    def phases(self) -> Sequence[Phase]:
        training, patch_size = self.plan.training, self.plan.patch_size
        spatial = Spatial.for_patch(patch_size)
        learnt = self._learnt()
        train = Phase(
            name="train",
            num_steps=training.iterations,
            batch_size=training.batch_size,
            sample=Mixture(
                tuple(self._sampler(dataset, spatial) for dataset in self.plan.datasets),
                tuple(dataset.share * (dataset in learnt) for dataset in self.plan.datasets),
            ),
            augment=Augmentation(patch_size=patch_size, mirror_axes=(), keeps_slices=spatial.in_plane),
            schedule=WarmupThenPoly(self.config.warmup),
        )
        return (train,)

    def optimizers(self, phase: str) -> dict[str, Optimizer]:
        parameters, training = learning(self.network, self.config.transfer), self.plan.training
        decay = training.weight_decay
        return {"main": Lamb(parameters, training.lr, eps=self.config.eps, weight_decay=decay)}

    def training_step(self, batch: Batch, update: Update, at: Progress) -> dict[str, Tensor]:
        # Where memory is measured there are no cases; a whole patch takes most.
        tasks, part = batch["tasks"], self._part(batch.get("shape", [self.plan.patch_size])[0])
        output: PriorOutput = self.network(batch["image"][part], tasks, batch["modality"])
        outputs = [output.logits] if output.deep is None else [output.logits, output.deep]
        segmentation = self.loss(outputs, batch["label"][part], batch["source"], tasks >= 0)
        modality = self.loss.modality(output.modality, batch["true_modality"])
        loss = segmentation + self.config.modality_weight * modality
        update.minimise(loss)
        self.average.update(self.network, decay=decay_at(self.config.ema, at.step, at.num_steps))
        terms = {"loss": loss, "segmentation": segmentation, "modality": modality}
        return {name: term.detach() for name, term in terms.items()}

    def predictor(self, case: Case, support: Sequence[Case]) -> Predictor:
        dataset = self.plan.dataset(case.dataset)
        tasks = torch.tensor(self.task_ids[self.plan.datasets.index(dataset)])
        told, known = case.prompts.get("modality"), self.config.modalities
        modality = torch.tensor(modality_of_case(dataset, case.domain, known, told=told))
        part = self._part(case.shape)

        def logits(
            patches: Tensor, corners: Sequence[tuple[int, int, int]], flipped: Sequence[int] = ()
        ) -> Tensor:
            ids = (
                number.to(patches.device).expand(len(patches), *number.shape) for number in (tasks, modality)
            )
            found: Tensor = self.average.call(self.network, patches[part], *ids).logits.float()
            is_exclusive = dataset.labels.is_exclusive
            answer = found.new_zeros(len(patches), is_exclusive + found.shape[1], *patches.shape[2:])
            answer[:, int(is_exclusive) :][part] = found
            return answer

        return logits

    def heatmaps(self) -> Mapping[str, Heatmap]:
        """Return how alike the tokens of tasks are in the network that predicts."""
        with torch.no_grad():
            found = self.average.applied(self.network).similarity().cpu()
        # Each token is as like itself as can be; the colours are for the others.
        most = max(0.01, float(found.triu(1).abs().max()))
        title = "Similarity of the task tokens (mean cosine over levels)"
        values = tuple(map(tuple, found.tolist()))
        names, limits = self.config.tasks, (-most, most)
        return {"task_similarity": Heatmap(title=title, names=names, values=values, limits=limits)}

    def _take_over(
        self, weights: Mapping[str, Tensor], *, tasks: Sequence[str], modalities: Sequence[str], where: str
    ) -> None:
        begun = [begins_as(name, self.config.tasks, tasks) for name in self.config.tasks]
        state = translate(
            weights, self.network, tasks=(tasks, begun), modalities=(modalities, self.config.modalities)
        )
        restore(self.network, state, where=where)
        self.average = MovingAverage(self.network)
        for name, first in zip(self.config.tasks, begun, strict=True):
            logger.info("%s: '%s' begins %s.", where, name, f"as '{first}'" if first in tasks else "anew")

    def _part(self, shape: tuple[int, int, int]) -> tuple[EllipsisType | slice, ...]:
        """Return the part of a patch that the network sees: without padding, in steps of one patch.

        Several patches stay of one size, so that none depends on which others share its batch.
        """
        if self.plan.training.batch_size > 1 or self.config.compat:
            return (...,)
        return (..., *filled(shape, self.plan.patch_size, multiple=self.needs.patch_multiple))

    def _learnt(self) -> tuple[DatasetPlan, ...]:
        """Return the datasets that training draws from."""
        return _new_datasets(self.config, self.plan) or self.plan.datasets

    def _sampler(self, dataset: DatasetPlan, spatial: Spatial) -> TaskPatches:
        ids = self.task_ids[self.plan.datasets.index(dataset)]
        domains: tuple[str | None, ...] = (None, *sorted(set(dataset.domains.values())))
        return TaskPatches(
            labelled=Labelled(
                self.plan.patch_size, self.config.oversample, dataset=dataset.name, spatial=spatial
            ),
            tasks=ids + (-1,) * (self.num_slots - len(ids)),
            modality_of_domain=tuple(
                (domain, modality_of_case(dataset, domain, self.config.modalities)) for domain in domains
            ),
            hide_modality=0.0 if self.config.compat else self.config.hide_modality,
        )


def _new_datasets(config: Config, plan: Plan) -> tuple[DatasetPlan, ...]:
    """Return the datasets whose tasks learn while those of others stay as they are."""
    if config.transfer == "full":
        return ()
    return named(config.new_datasets, plan) or plan.datasets


def _with_names(config: Config, plan: Plan) -> Config:
    """Append the tasks and modalities that the datasets have and the config does not, new datasets' last."""
    new = _new_datasets(config, plan)
    ordered = [*(dataset for dataset in plan.datasets if dataset not in new), *new]
    tasks = [name for dataset in ordered for name in task_names(dataset, config.shared)]
    # Incremental learning trains nothing but task tokens: another modality is an unknown one there.
    seen = [d for d in ordered if config.transfer != "incremental" or d not in new]
    modalities = append_new(config.modalities, [name for dataset in seen for name in modalities_of(dataset)])
    return replace(config, tasks=append_new(config.tasks, tasks), modalities=modalities)


METHOD = Hermes
