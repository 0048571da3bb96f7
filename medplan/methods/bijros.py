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
from torch.optim import Adam, Optimizer

from medplan.errors import MethodError
from medplan.learning.registration import agreement
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
from medplan.networks.distillation import Distillation, exchange
from medplan.networks.encoders import ENCODERS, build_encoder, build_teacher, load_encoder
from medplan.networks.hypergradient import differentiate, hypergradient_factor
from medplan.networks.joint import JointNetwork, Maps, UNetEncoder, Voxel
from medplan.networks.pairing import Pair, Pairing
from medplan.networks.random_affine import RandomAffine
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
        imitation: weight of SAM's features in the second phase of rrl; keep: share of its own weights that
            each of the two encoders keeps per step there.
        compat: count zeros beyond the border in the LNCC.
    """

    mode: Literal["bilevel", "alternating"] = "bilevel"
    output: Literal["seg", "reg"] = "seg"
    encoder_share: float = 0.3
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
    sam: Literal["vit_b", "vit_l", "vit_h"] = "vit_b"
    slices_at_once: int = 16
    teacher: Literal["none", "vit_b", "vit_l", "vit_h"] = "none"
    imitation: float = 0.1
    keep: float = 0.99
    compat: bool = False

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
        numbers: dict[str, Any] = {"lr": 1e-4, "weight_decay": 0.0, "batch_size": 1}
        reasons = {"batch_size": "one pair, as in the official code", "lr": "as in the official code"}
        if situation.num_labelled == 1 and situation.num_unlabelled > 0:
            reason = f"one labelled case and {situation.num_unlabelled} without label"
            return Proposal(fits=True, score=90, reason=reason, reasons=reasons, **numbers)
        reason = f"it would learn from one of the {situation.num_labelled} labels only"
        return Proposal(fits=True, score=10, reason=reason, reasons=reasons, **numbers)

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self.plan = plan
        self.config = decode(Config, plan.config, where=f"plan '{plan.name}' config")
        encoder = build_encoder(
            plan.encoder,
            inputs=plan.num_channels,
            patch_size=plan.patch_size,
            channels=self.config.channels,
            sam=self.config.sam,
            slices_at_once=self.config.slices_at_once,
        )
        labels = plan.datasets[0].labels
        self.network = JointNetwork.build(encoder, labels.num_outputs)
        self.pairing = Pairing(
            self.network,
            labels,
            diffeomorphic=self.config.diffeomorphic,
            window=self.config.window,
            compat=self.config.compat,
        )
        self.distillation: Distillation | None = None
        if self.config.teacher != "none":
            if plan.encoder != "rrl" or not isinstance(encoder, UNetEncoder):
                raise MethodError("bijros: 'config.teacher' is for '--encoder rrl' only; plan it again.")
            teacher = build_teacher(
                plan.num_channels, plan.patch_size, self.config.teacher, self.config.slices_at_once
            )
            self.distillation = Distillation(encoder, teacher, labels.num_outputs)

    def load_encoder(self, weights: Mapping[str, Tensor]) -> None:
        """Load the published weights of the plan's encoder, or of the teacher if there is one, strictly."""
        target = self.network.encoder if self.distillation is None else self.distillation.teacher
        load_encoder(target, weights, where=str(self.plan.encoder_weights))

    def phases(self) -> Sequence[Phase]:
        training, config = self.plan.training, self.config
        has_weights = self.plan.encoder_weights is not None
        if self.plan.encoder == "sam" and not has_weights:
            logger.warning("The encoder sam has random weights and is not trained; give --encoder-weights.")
        is_trained = self.distillation is not None or not (has_weights or self.plan.encoder == "sam")
        share = config.encoder_share if is_trained else 0.0
        num_first = min(round(share * training.iterations), training.iterations - 1)
        names = ("encoder",) if self.distillation is None else ("distil", "mutual")
        lengths = [(num_first + number) // len(names) for number in range(len(names))]
        turn = RandomAffine(degrees=config.degrees, scale=config.scale)
        pretraining = [
            Phase(
                name=name,
                num_steps=length,
                batch_size=training.batch_size,
                sample=AtlasAndImage(self.plan.patch_size, ("unlabelled", "pretrain")),
                augment=turn,
                schedule=constant,
                validate=False,
            )
            for name, length in zip(names, lengths, strict=True)
            if length
        ]
        apart = config.mode == "bilevel" and not config.shared_passes
        bilevel = Phase(
            name="bilevel",
            num_steps=training.iterations - num_first,
            batch_size=training.batch_size,
            sample=AtlasAndImage(self.plan.patch_size),
            augment=replace(turn, keeps_original=True) if apart else turn,
            schedule=constant,
        )
        return (*pretraining, bilevel)

    def optimizers(self, phase: str) -> dict[str, Optimizer]:
        training, network = self.plan.training, self.network

        def adam(parameters: Iterable[torch.nn.Parameter]) -> Adam:
            return Adam(parameters, lr=training.lr, weight_decay=training.weight_decay)

        if phase == "bilevel":
            return {
                "reg": adam(network.registration.parameters()),
                "seg": adam(network.segmentation.parameters()),
            }
        others = [] if self.distillation is None else self.distillation.students(phase)
        return {"main": adam([*network.parameters(), *others])}

    def training_step(self, batch: Batch, update: Update, at: Progress) -> dict[str, Tensor]:
        if at.phase != "bilevel":
            return self._pretrain(batch, update, at)
        # Frozen means its running statistics too.
        self.network.encoder.eval()
        self.network.registration.train()
        self.network.segmentation.train()
        if self.config.mode == "alternating":
            return self._alternate(batch, update)
        pairing = self.pairing
        turned = "turned_" if "turned_image" in batch else ""
        if not self.config.shared_passes:
            with torch.no_grad():
                self.network.registration.eval()
                pair = pairing.register(batch)
                self.network.registration.train()
                maps = self.network.encode(pairing.pseudo_image(pair, self._blend(pair)))
            lower = self._lower(maps, pair, update)
        pair = pairing.register(batch, turned)
        pseudo = pairing.pseudo_image(pair, self._blend(pair))
        # Cut off from the flows, so that the encoder's part of the graph can be traversed by itself.
        leaf = pseudo.detach().requires_grad_(not self.config.detach_pseudo)
        maps = self.network.encode(leaf)
        if self.config.shared_passes:
            lower = self._lower([features.detach() for features in maps], pair, update)
        return {"lower": lower, **self._upper(pair, pseudo, leaf, maps, update)}

    def _pretrain(self, batch: Batch, update: Update, at: Progress) -> dict[str, Tensor]:
        """One step of everything at once, from atlas to image only."""
        pair = self.pairing.register(batch, with_gradient=True, both_ways=False)
        terms = self.pairing.one_way(pair)
        terms["agreement"] = self.pairing.consistency(pair)
        loss = self._early(terms) + terms["agreement"]
        if self.distillation is not None:
            learned = self.distillation.terms(pair, self.pairing, is_mutual=at.phase == "mutual")
            weights = {"imitation": self.config.imitation if at.phase == "mutual" else 1.0}
            loss = loss + sum((weights.get(name, 1.0) * term for name, term in learned.items()))
            terms |= learned
        update.minimise(loss)
        logged = {"loss": loss, **terms}
        if at.phase == "mutual" and self.distillation is not None:
            logged["distance"] = exchange(
                self.distillation.general, self.network.encoder, keep=self.config.keep
            )
        return {name: value.detach() for name, value in logged.items()}

    def _alternate(self, batch: Batch, update: Update) -> dict[str, Tensor]:
        """A step of registration, then one of segmentation on the image itself with the warped label."""
        pair = self.pairing.register(batch, both_ways=False)
        terms = self.pairing.one_way(pair)
        warped = warp(pair.members, pair.to_image)
        answer = self.pairing.probabilities(pair.image_maps, pair.size)
        loss = self._early(terms) + agreement(warped, answer.detach())
        lower = agreement(answer, warped.detach())
        update.minimise(loss, "reg")
        update.minimise(lower, "seg")
        logged = {"loss": loss, "lower": lower, **terms}
        return {name: value.detach() for name, value in logged.items()}

    def _early(self, terms: Mapping[str, Tensor]) -> Tensor:
        config = self.config
        return config.encoder_similarity * terms["similarity"] + config.encoder_smooth * terms["smooth"]

    def _blend(self, pair: Pair) -> Tensor:
        low, high = self.config.blend
        return low + (high - low) * torch.rand((len(pair.image), 1, 1, 1, 1), device=pair.image.device)

    def _lower(self, maps: Maps, pair: Pair, update: Update) -> Tensor:
        """Take the step of segmentation on the pseudo pair."""
        target = warp(pair.members, pair.to_image.detach())
        loss = agreement(self.pairing.probabilities(maps, pair.size), target)
        update.minimise(loss, "seg")
        return loss.detach()

    def _upper(
        self, pair: Pair, pseudo: Tensor, leaf: Tensor, maps: Maps, update: Update
    ) -> dict[str, Tensor]:
        """Take the step of registration along the hypergradient.

        Both objectives meet the flows only through the warped labels and the pseudo image. They are cut
        there, so that each part of the graph is traversed once and freed before the next one is.

        Args:
            pseudo: the pseudo image, with its graph down to the flows.
            leaf: the same values without the graph.
            maps: of `leaf`, with a graph.
        """
        config, pairing = self.config, self.pairing
        self.network.segmentation.eval()
        parameters = list(self.network.segmentation.parameters())
        warped = warp(pair.members, pair.to_image)
        label = warped.detach().requires_grad_()
        consistency = agreement(label, pairing.probabilities(pair.image_maps, pair.size))
        upper, (label_upper,) = differentiate(
            config.agreement * consistency, parameters, [label], update, "seg"
        )
        segmentation = agreement(pairing.probabilities(maps, pair.size), label)
        inputs = [label] if config.detach_pseudo else [label, leaf]
        lower, (label_lower, *image_lower) = differentiate(segmentation, parameters, inputs, update, "seg")
        factor = hypergradient_factor(upper, lower, limit=config.factor_limit)
        terms = pairing.both_ways(pair)
        weights = {"similarity": config.similarity, "smooth": config.smooth, "cycle": config.cycle}
        images = torch.stack([weight * terms[name] for name, weight in weights.items()]).sum()
        label_gradient = label_upper + factor * label_lower
        total = images + (label_gradient * warped).sum()
        if image_lower:
            total = total + factor * (image_lower[0] * pseudo).sum()
        update.minimise(total, "reg")
        registration = images + config.agreement * consistency
        # What is left of the Dice in the gradient; near 0 where c is near -1 and the blend near 1.
        left = label_gradient.norm() / label_upper.norm().clamp_min(1e-12)
        logged = {**terms, "registration": registration, "agreement": consistency}
        logged |= {"segmentation": segmentation, "factor": factor, "left": left}
        return {name: value.detach() for name, value in logged.items()}

    def predictor(self, case: Case, support: Sequence[Case]) -> Predictor:
        if self.config.output == "seg":
            return lambda patches, corners: self.network.segment(
                self.network.encode(patches), patches.shape[-3:]
            )
        atlas = _atlas_of(support)

        def registered(patches: Tensor, corners: Sequence[Voxel]) -> Tensor:
            answers = []
            for patch, corner in zip(patches, corners, strict=True):
                pair = self.pairing.onto(patch[None], case, corner, atlas)
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
