"""Joint registration and one-shot segmentation: one labelled atlas, unlabelled images, two decoders.

Paper: Bi-JROS, Fan et al., CVPR 2024, pp. 11726-11735. Official code (no licence file): read, not copied.
RRL-MedSAM: Wang et al. 2025, arXiv:2504.20501 (no code; see `medplan.networks.distillation`).

An encoder is trained once and then frozen. Registration (parameters omega) is the upper problem, segmentation
(theta) the lower one, which learns from pseudo pairs that registration makes. One lower step is followed by
one upper step along ``d(Phi_r + c Phi_s) / d omega`` with ``c = - <g_r, g_s> / <g_s, g_s>``, the gradients
being those of both objectives in theta.

| paper or official code                        | here                                                     |
|-----------------------------------------------|----------------------------------------------------------|
| learning rate 1e-4, Adam, batch 1             | `training.lr`, `training.batch_size`                     |
| 1500 passes over the pairs                    | `training.iterations`, 25,000 in all unless changed      |
| step 1, encoder pre-training                  | phase ``encoder``, `config.encoder_share` of iterations  |
| L_sim, L_smo, cycle, Dice: 1, 1, 10, 1        | `config.similarity`, `smooth`, `cycle`, `agreement`      |
| encoder pre-training: 10 L_sim, 15 L_smo      | `config.encoder_similarity`, `config.encoder_smooth`     |
| blend a ~ U(0.6, 0.95)                        | `config.blend`                                           |
| window of 9 voxels                            | `config.window`                                          |
| rotation +-10 degrees, scale 0.9 to 1.1       | `config.degrees`, `config.scale`                         |
| 128 x 128 x 128 grid, intensities in [0, 1]   | `grid.shape`, `normalisations`                           |

Differs: the planner proposes `cross_entropy` and a `segmentation_rate` of their own for segmentation; short
trainings spend more on the encoder (`encoder_steps`), which is frozen afterwards.

Differs: warps are corner-aligned; LNCC windows leave out what is beyond the border (`compat` counts zeros);
the frozen encoder is in eval mode; c has an epsilon and a limit; decoders go on from pre-training; both steps
see the same turned images and blend, so that three encoder passes do for six (`shared_passes`); gradients are
clipped; intensities are clipped to percentiles before they are mapped to [0, 1]; a registered label map is
the arg-max of linearly warped classes rather than nearest-neighbour labels.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

from medplan.errors import MethodError
from medplan.method import (
    Batch,
    Method,
    Needs,
    Phase,
    Predictor,
    Progress,
    Proposal,
    Situation,
    Update,
    Volume,
    constant,
)  # fmt: skip
from medplan.networks.bilevel import step_apart, step_registration, step_segmentation
from medplan.networks.distillation import Distillation, exchange
from medplan.networks.encoders import ENCODERS, build_encoder, build_network, build_teacher, load_encoder
from medplan.networks.joint import UNetEncoder, Voxel
from medplan.networks.pairing import Pair, Pairing
from medplan.networks.random_affine import RandomAffine
from medplan.networks.sam import SAM_FILES, variant_of
from medplan.networks.warp import warp
from medplan.plan.schema import Plan
from medplan.records import decode
from medplan.samples.cases import Case
from medplan.samples.pairs import AtlasAndImage, around

__all__ = ["METHOD", "BiJROS", "Config"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Numbers of the method; the defaults are the official code's, where it has them.

    Attributes:
        mode: ``bilevel``, or ``alternating``: registration and segmentation steps that do not know of each
            other (the authors' baseline).
        output: branch that predicts: segmentation, or registration of the atlas.
        encoder_share: part of the iterations that trains the encoder, where no weights are given; in [0, 1).
        encoder_steps: the least number of them, up to seven tenths of the training.
        similarity, smooth, cycle, agreement: weights of the upper objective.
        encoder_similarity, encoder_smooth: weights of pre-training and of the alternating mode.
        blend: range of a; the pseudo image is (1 - a) round trip + a unlabelled image.
        window: side of the LNCC window, odd; degrees, scale: of the random rotation and scaling.
        shared_passes: both steps see the same turned images and blend; False turns only those of the upper
            step and draws a blend for each, as the official code does, for twice the encoder passes.
        detach_pseudo: send no gradient through the frozen encoder to the pseudo image.
        factor_limit: largest absolute value of c.
        diffeomorphic: take the decoder's answer as a velocity field and integrate it.
        channels: of the U-Net encoder.
        sam: variant of the SAM encoder; slices_at_once: slices it encodes in one pass.
        teacher: SAM variant that the encoder rrl learns from, or none; `encoder_weights` is its file then.
            Where both are None the name of the file tells them.
        imitation: weight of SAM's features in the second phase of rrl; keep: share of its own weights that
            each of the two encoders keeps per step there.
        compat: count zeros beyond the border in the LNCC.
        segmentation_rate: learning rate of the segmentation decoder after phase 1, over `training.lr`.
        cross_entropy: weight of class-balanced cross-entropy in what segmentation learns in phase 1.
        synthetic: chance that segmentation also learns, in phase 1, from an image drawn from the registered
            label; see `medplan.samples.synthetic`.
        recompute: compute activations twice to spare memory.
    """

    mode: Literal["bilevel", "alternating"] = "bilevel"
    output: Literal["seg", "reg"] = "seg"
    encoder_share: float = 0.3
    encoder_steps: int = 2000
    similarity: float = 1.0
    smooth: float = 1.0
    cycle: float = 10.0
    agreement: float = 1.0
    encoder_similarity: float = 10.0
    encoder_smooth: float = 15.0
    blend: tuple[float, float] = (0.6, 0.95)
    window: int = 9
    degrees: float = 10.0
    scale: tuple[float, float] = (0.9, 1.1)
    shared_passes: bool = True
    detach_pseudo: bool = False
    factor_limit: float = 10.0
    diffeomorphic: bool = False
    channels: tuple[int, ...] = (32, 64, 128, 256)
    sam: Literal["vit_b", "vit_l", "vit_h"] | None = None
    slices_at_once: int = 16
    teacher: Literal["none", "vit_b", "vit_l", "vit_h"] | None = None
    imitation: float = 0.1
    keep: float = 0.99
    compat: bool = False
    segmentation_rate: float = 1.0
    cross_entropy: float = 0.0
    synthetic: float = 0.0
    recompute: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.encoder_share < 1:
            raise ValueError(f"'encoder_share' should be in [0, 1), found {self.encoder_share}")
        if self.window % 2 == 0 or self.window < 1:
            raise ValueError(f"'window' should be odd, found {self.window}")


class BiJROS(Method):
    """Joint registration and one-shot segmentation from one atlas."""

    needs = Needs(
        dims=(3,),
        roles=("atlas", "unlabelled"),
        encoders=ENCODERS,
        patch_multiple=8,
        grid="squeezed",
        normalisation="unit",
        whole_image=True,
        aligned=True,
    )
    Config = Config

    @classmethod
    def propose(cls, situation: Situation) -> Proposal:
        """Fit volumes with an atlas and others to register it to; best where there is one label."""
        if situation.is_picture:
            return Proposal(fits=False, score=0, reason="it registers volumes, not pictures")
        if situation.num_labelled == 0:
            return Proposal(fits=False, score=0, reason="there is no labelled case to be the atlas")
        if situation.num_datasets > 1:
            return Proposal(fits=False, score=0, reason="it learns one dataset at a time")
        if situation.num_labelled + situation.num_unlabelled < 2:
            return Proposal(fits=False, score=0, reason="there is no second image to register")
        config = {"segmentation_rate": 3.0, "cross_entropy": 0.3}
        numbers: dict[str, Any] = {"lr": 1e-4, "weight_decay": 0.0, "batch_size": 1, "config": config}
        numbers["encoder_weights"] = dict.fromkeys(("rrl", "sam"), SAM_FILES["vit_b"])
        official = "as in the official code"
        reasons = {
            "batch_size": f"one pair, {official}",
            "lr": official,
            "config.segmentation_rate": "its features are fixed, which bears a higher rate; 1 in the paper",
            "config.cross_entropy": "small classes start to be found in half the steps; 0 in the paper",
        }
        if situation.num_labelled == 1 and situation.num_unlabelled > 0:
            reason = f"one labelled case and {situation.num_unlabelled} without label"
            return Proposal(fits=True, score=90, reason=reason, reasons=reasons, **numbers)
        reason = f"it would learn from one of the {situation.num_labelled} labels only"
        return Proposal(fits=True, score=10, reason=reason, reasons=reasons, **numbers)

    @classmethod
    def settle(cls, plan: Plan) -> Plan:
        """Read from the name of the weight file which SAM it is of, and whether rrl learns from it."""
        variant = variant_of(plan.encoder_weights)
        learns = plan.encoder == "rrl" and variant is not None
        chosen = {"sam": variant or "vit_b", "teacher": variant if learns else "none"}
        missing = {key: value for key, value in chosen.items() if plan.config.get(key) is None}
        why = {"config.teacher": "the weights are SAM's, so the encoder learns from it"} if learns else {}
        return replace(plan, config={**plan.config, **missing}, reasons={**plan.reasons, **why})

    @classmethod
    def lighter(cls, plan: Plan) -> Plan | None:
        """Compute activations twice; SAM's slices are never kept."""
        if plan.config["recompute"] or plan.encoder == "sam":
            return None
        return replace(plan, config={**plan.config, "recompute": True})

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self.plan = plan
        self.config = decode(Config, plan.config, where=f"plan '{plan.name}' config")
        encoder = build_encoder(
            plan.encoder,
            inputs=plan.num_channels,
            patch_size=plan.patch_size,
            channels=self.config.channels,
            sam=self.config.sam or "vit_b",
            slices_at_once=self.config.slices_at_once,
        )
        labels = plan.datasets[0].labels
        self.network = build_network(encoder, labels.num_outputs, recompute=self.config.recompute)
        self.pairing = Pairing(
            self.network,
            labels,
            diffeomorphic=self.config.diffeomorphic,
            window=self.config.window,
            compat=self.config.compat,
        )
        self.distillation: Distillation | None = None
        if (teaching := self.config.teacher or "none") != "none":
            if plan.encoder != "rrl" or not isinstance(encoder, UNetEncoder):
                raise MethodError("bijros: 'config.teacher' is for '--encoder rrl' only; plan it again.")
            teacher = build_teacher(plan.num_channels, plan.patch_size, teaching, self.config.slices_at_once)
            self.distillation = Distillation(encoder, teacher, labels.num_outputs)

    def load_encoder(self, weights: Mapping[str, Tensor]) -> None:
        """Load the published weights of the plan's encoder, or of the teacher if there is one, strictly."""
        target = self.network.encoder if self.distillation is None else self.distillation.teacher
        load_encoder(target, weights, where=str(self.plan.encoder_weights))

    def phases(self) -> Sequence[Phase]:
        training, config = self.plan.training, self.config
        has_weights = self.plan.encoder_weights is not None
        if (self.plan.encoder == "sam" or self.distillation is not None) and not has_weights:
            logger.warning("SAM has random weights and is not trained; give --encoder-weights.")
        is_trained = self.distillation is not None or not (has_weights or self.plan.encoder == "sam")
        total = training.iterations
        least = min(config.encoder_steps, round(0.7 * total))
        longest = max(0, total - 1) if is_trained else 0
        num_first = min(max(round(config.encoder_share * total), least), longest)
        firsts = ("encoder",) if self.distillation is None else ("distil", "mutual")
        lengths = {name: (num_first + number) // len(firsts) for number, name in enumerate(firsts)}
        lengths["bilevel"] = total - num_first
        turn = RandomAffine(degrees=config.degrees, scale=config.scale)
        apart = config.mode == "bilevel" and not config.shared_passes
        return [
            Phase(
                name=name,
                num_steps=length,
                batch_size=training.batch_size,
                sample=AtlasAndImage(
                    self.plan.patch_size, ("unlabelled", "pretrain") if name in firsts else ("unlabelled",)
                ),
                augment=replace(turn, keeps_original=apart and name == "bilevel"),
                schedule=constant,
                validate=name not in firsts,
            )
            for name, length in lengths.items()
            if length or name == "bilevel"
        ]

    def optimizers(self, phase: str) -> dict[str, Optimizer]:
        training, network = self.plan.training, self.network

        def adam(parameters: Iterable[torch.nn.Parameter], rate: float = 1.0) -> Optimizer:
            return AdamW(parameters, lr=rate * training.lr, weight_decay=training.weight_decay)

        if phase == "bilevel":
            return {
                "reg": adam(network.registration.parameters()),
                "seg": adam(network.segmentation.parameters(), self.config.segmentation_rate),
            }
        others = [] if self.distillation is None else self.distillation.students(phase)
        return {"main": adam([*network.parameters(), *others])}

    def training_step(self, batch: Batch, update: Update, at: Progress) -> dict[str, Tensor]:
        if at.phase != "bilevel":
            return self._pretrain(batch, update, at)
        config = self.config
        self.network.train()
        # Frozen means its running statistics too.
        self.network.encoder.eval()
        if config.mode == "alternating":
            early = {"similarity": config.encoder_similarity, "smooth": config.encoder_smooth}
            return step_apart(self.pairing, self.pairing.register(batch, both_ways=False), update, early)
        return self._nest(batch, update)

    def _pretrain(self, batch: Batch, update: Update, at: Progress) -> dict[str, Tensor]:
        """One step of everything at once, from atlas to image only."""
        config, pairing, share = self.config, self.pairing, self.config.cross_entropy
        pair = pairing.register(batch, with_gradient=True, both_ways=False)
        terms = pairing.one_way(pair)
        terms["agreement"] = pairing.consistency(pair, cross_entropy=share)
        loss = config.encoder_similarity * terms["similarity"] + config.encoder_smooth * terms["smooth"]
        loss = loss + terms["agreement"]
        if (drawn := self._drawn(pair)) is not None:
            terms["drawn"] = pairing.teach(self.network.encode(drawn[0]), drawn[1], cross_entropy=share)
            loss = loss + terms["drawn"]
        if self.distillation is not None:
            learned = self.distillation.terms(pair, pairing, is_mutual=at.phase == "mutual")
            weights = {"imitation": config.imitation if at.phase == "mutual" else 1.0}
            loss = loss + sum((weights.get(name, 1.0) * term for name, term in learned.items()))
            terms |= learned
        update.minimise(loss)
        logged = {"loss": loss, **terms}
        if at.phase == "mutual" and self.distillation is not None:
            logged["distance"] = exchange(self.distillation.general, self.network.encoder, keep=config.keep)
        return {name: value.detach() for name, value in logged.items()}

    def _nest(self, batch: Batch, update: Update) -> dict[str, Tensor]:
        """A step of segmentation on the pseudo pair, then one of registration along the hypergradient."""
        config, pairing = self.config, self.pairing
        turned = "turned_" if "turned_image" in batch else ""
        if not config.shared_passes:
            with torch.no_grad():
                self.network.registration.eval()
                pair = pairing.register(batch)
                self.network.registration.train()
                maps = self.network.encode(pairing.pseudo_image(pair, self._blend(pair)))
            lower = step_segmentation(pairing, maps, warp(pair.members, pair.to_image), update)
        pair = pairing.register(batch, turned)
        pseudo = pairing.pseudo_image(pair, self._blend(pair))
        # Cut off from the flows, so that the encoder's part of the graph can be traversed by itself.
        leaf = pseudo.detach().requires_grad_(not config.detach_pseudo)
        maps = self.network.encode(leaf)
        if config.shared_passes:
            target = warp(pair.members, pair.to_image.detach())
            lower = step_segmentation(pairing, [one.detach() for one in maps], target, update)
        weights = {name: getattr(config, name) for name in ("similarity", "smooth", "cycle", "agreement")}
        logged = step_registration(
            pairing, pair, pseudo, leaf, maps, update, weights=weights, limit=config.factor_limit
        )
        return {"lower": lower, **logged}

    def _drawn(self, pair: Pair) -> tuple[Tensor, Tensor] | None:
        """Return an image drawn from the registered label and what it shows, as often as the plan says."""
        # Without values there is nothing to draw; such an image takes the memory of any other.
        if pair.image.is_meta or float(torch.rand((), device="cpu")) >= self.config.synthetic:
            return None
        source = torch.Generator().manual_seed(int(torch.randint(2**62, (), device="cpu")))
        target = warp(pair.members, pair.to_image.detach())
        return self.pairing.drawn(target, channels=pair.image.shape[1], generator=source)

    def _blend(self, pair: Pair) -> Tensor:
        low, high = self.config.blend
        return low + (high - low) * torch.rand((len(pair.image), 1, 1, 1, 1), device=pair.image.device)

    def predictor(self, case: Case, support: Sequence[Case]) -> Predictor:
        if self.config.output == "seg":
            return lambda patches, corners, flipped=(): self.network.segment(
                self.network.encode(patches), patches.shape[-3:]
            )
        atlas = _atlas_of(support)

        def registered(patches: Tensor, corners: Sequence[Voxel], flipped: Sequence[int] = ()) -> Tensor:
            answers = []
            for patch, corner in zip(patches, corners, strict=True):
                pair = self.pairing.onto(patch[None], case, corner, atlas, flipped)
                answers.append(self.pairing.as_logits(warp(pair.members, pair.to_image)))
            return torch.cat(answers)

        return registered

    def extras(self, case: Case, support: Sequence[Case]) -> dict[str, Volume | float]:
        """Return the registered segmentation, the flow, the warped atlas, and how good the field is."""
        if any(side > most for side, most in zip(case.shape, self.plan.patch_size, strict=True)):
            raise MethodError(
                f"case '{case.key}' of {case.shape} voxels is larger than the patch {self.plan.patch_size}; "
                "registration is given out for whole images only."
            )
        corner, upper, inner = around(case, self.plan.patch_size)
        patch = torch.from_numpy(case.image(corner, upper)[None]).to(self.pairing.membership.device)
        pair = self.pairing.onto(patch, case, corner, _atlas_of(support))
        return self.pairing.describe(pair, inner)


def _atlas_of(support: Sequence[Case]) -> Case:
    atlas = next((case for case in support if case.codes is not None), None)
    if atlas is None:
        raise MethodError(
            "bijros: registration needs the atlas, which is not beside this model; train it again."
        )
    return atlas


METHOD = BiJROS
