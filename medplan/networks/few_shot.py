"""Segmenting a case with the classes that support cases show, slice by slice.

Which slice of a support case serves a slice of the query is decided without the query's label: by fitting
the support onto the query (`medplan.networks.carried`), by relative position in the body, or by likeness; by
likeness alone where the user says that classes can be anywhere (`Case.prompts` under ``anywhere``).
With the extent of a class given (`Case.prompts` under ``extent``: code -> first and last slice), slices are
matched part by part, as published comparisons do.
"""

# Shapes: B patches, C channels or features, K outputs, Y X pixels or cells.

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from medplan.data.labels import IGNORE
from medplan.networks.carried import Carried, carry_class
from medplan.networks.prototypes import Classifier, Prototypes, Shrink, shrink
from medplan.preprocess.carry import align_bodies, body_box, refine
from medplan.samples.cases import Case
from medplan.samples.slices import matching_slice, part_of, slices_of_parts, slices_with

__all__ = ["Correspondence", "FewShotPredictor"]

Correspondence = Literal["fit", "position", "similarity"]
Volume = npt.NDArray[np.float32]
Corner = tuple[int, int, int]
Shot = tuple[int, int]
"""Number of the support case, and z of one of its slices."""

ABSENT = -40.0
"""Twice the largest difference of two scores: a class that is ruled out."""


class FewShotPredictor:
    """A `medplan.method.Predictor` for slices.

    Args:
        encode: pictures (B, channels of the cases, Y, X), sides multiples of 8, -> features (B, C, Y / 8,
            X / 8).
        classifier: compares features.
        support: cases with codes; code k stands for output k.
        num_outputs: K, background included.
        correspondence: how slices are matched where no extent is given; ``fit`` needs volumes with a spacing,
            and matches by ``position`` where there are none.
        per_mm, per_look: with ``fit``: what a pixel's score gains per millimetre inside the carried outline,
            and the weight of its likeness to what the outline encloses.
        margin: with ``position``: a slice further outside the extent of a class than this share of the body
            is taken to show none of it.
        shrink_by: how masks come to the feature grid.
    """

    def __init__(
        self,
        encode: Callable[[Tensor], Tensor],
        classifier: Classifier,
        case: Case,
        support: Sequence[Case],
        *,
        num_outputs: int,
        correspondence: Correspondence = "position",
        per_mm: float = 0.3,
        per_look: float = 3.0,
        margin: float = 0.1,
        shrink_by: Shrink = "area",
    ) -> None:
        self.encode, self.classifier, self.shrink_by = encode, classifier, shrink_by
        self.support, self.num_outputs = tuple(support), num_outputs
        self.correspondence: Correspondence = "similarity" if case.prompts.get("anywhere") else correspondence
        self.per_mm, self.per_look, self.margin = per_mm, per_look, margin
        self.case = case
        self.extents: Mapping[int, tuple[int, int]] = case.prompts.get("extent", {})
        self.num_slices = case.shape[0]
        self.shown = {
            code: [(n, found) for n, other in enumerate(support) if len(found := slices_with(other, code))]
            for code in range(1, num_outputs)
        }
        first = _first_channel(case)
        others = [_first_channel(other) for other in support]
        self.body = body_box(first)[0]
        self.bodies = [body_box(other)[0] for other in others]
        self.carried: dict[int, Carried] = {}
        if self.correspondence == "fit" and all(_has_extent(one) for one in (case, *support)):
            self._carry(first, others)
        self._features: dict[Shot, Tensor] = {}
        self._prototypes: dict[tuple[int, tuple[Shot, ...]], tuple[Prototypes, Prototypes]] = {}

    def __call__(self, patches: Tensor, corners: Sequence[Corner], flipped: Sequence[int] = ()) -> Tensor:
        pictures = patches[:, :, 0]
        features = self.encode(pictures)
        answers = []
        for query, (z, _, _) in zip(torch.split(features, 1), corners, strict=True):
            z = min(max(z, 0), self.num_slices - 1)
            scores = [torch.zeros_like(query[:, :1], dtype=torch.float32)[:, 0]]
            scores += [self._score(query, z, code) for code in range(1, self.num_outputs)]
            answers.append(torch.stack(scores, dim=1))
        logits = F.interpolate(torch.cat(answers), pictures.shape[-2:], mode="bilinear", align_corners=False)
        logits = logits.float()
        if self.carried:
            for corner, scores in zip(corners, logits, strict=True):
                self._add_outlines(scores, corner, [axis - 3 for axis in flipped])
        return logits[:, :, None]

    def _carry(self, first: Volume, others: Sequence[Volume]) -> None:
        """Fit every support case onto the query, as a whole and then around each class."""
        wholes = [
            refine(align_bodies(first, other), first, other, target_mm=_mm(self.case), source_mm=_mm(case))[0]
            for other, case in zip(others, self.support, strict=True)
        ]
        for code, shown in self.shown.items():
            if shown and code not in self.extents:
                shots = [(others[n], self.support[n].label() == code, _mm(self.support[n]), wholes[n])
                         for n, _ in shown]  # fmt: skip
                self.carried[code] = carry_class(first, _mm(self.case), shots)

    def _add_outlines(self, scores_KYX: Tensor, corner: Corner, from_end: list[int]) -> None:
        """Add what each pixel's place in the carried outlines, and its look, are worth."""
        height, width = scores_KYX.shape[-2:]
        lower = (min(max(corner[0], 0), self.num_slices - 1), *corner[1:])
        upper = (lower[0] + 1, lower[1] + height, lower[2] + width)
        for code, carried in self.carried.items():
            worth = carried.worth(lower, upper, per_mm=self.per_mm, per_look=self.per_look, absent=ABSENT)
            scores_KYX[code] += torch.from_numpy(worth).to(scores_KYX.device).flip(from_end)

    def _score(self, query_1CYX: Tensor, z: int, code: int) -> Tensor:
        shots = self.shots(z, code, query_1CYX)
        if not shots:
            return query_1CYX.new_full((1, *query_1CYX.shape[-2:]), ABSENT, dtype=torch.float32)
        front, behind = self._compare_with(code, shots, query_1CYX.device)
        difference = self.classifier.score(query_1CYX, front) - self.classifier.score(query_1CYX, behind)
        return difference.float()

    def shots(self, z: int, code: int, query_1CYX: Tensor | None = None) -> tuple[Shot, ...]:
        """Return the support slices that a slice is compared with for a class; none if it has none there."""
        if code in self.extents:
            part = part_of(z, *self.extents[code])
            return tuple((n, slices_of_parts(found)[part]) for n, found in self.shown[code])
        if code in self.carried:
            if not self.carried[code].reaches(z):
                return ()
            matched = zip(self.shown[code], self.carried[code].positions(z), strict=True)
            return tuple((n, int(found[np.abs(found - at).argmin()])) for (n, found), at in matched)
        if self.correspondence == "similarity" and query_1CYX is not None:
            return tuple((n, self._likest(n, found, query_1CYX)) for n, found in self.shown[code])
        nearest = [(n, *matching_slice(z, self.body, found, self.bodies[n])) for n, found in self.shown[code]]
        near = min((outside for _, _, outside in nearest), default=np.inf)
        return tuple((n, best) for n, best, _ in nearest) if near <= self.margin else ()

    def _likest(self, number: int, found: Sequence[int] | npt.NDArray[Any], query_1CYX: Tensor) -> int:
        candidates = sorted(set(slices_of_parts(found)))
        means = torch.cat(
            [self._support_features((number, z), query_1CYX.device).mean((2, 3)) for z in candidates]
        )
        likeness = F.cosine_similarity(means.float(), query_1CYX.mean((2, 3)).float())
        return candidates[int(likeness.argmax())]

    def _compare_with(
        self, code: int, shots: tuple[Shot, ...], device: torch.device
    ) -> tuple[Prototypes, Prototypes]:
        known = self._prototypes.get((code, shots))
        if known is not None:
            return known
        front, behind = [], []
        for shot in shots:
            features = self._support_features(shot, device)
            codes = torch.from_numpy(self._plane(shot)).to(device)
            cells = (features.shape[-2], features.shape[-1])
            inside, outside = (
                shrink(_padded(mask[None].float()), cells, how=self.shrink_by)
                for mask in (codes == code, (codes != code) & (codes != IGNORE))
            )
            front.append(self.classifier.foreground(features, inside))
            behind.append(self.classifier.background(features, outside))
        joined = _join(front), _join(behind)
        self._prototypes[(code, shots)] = joined
        return joined

    def _support_features(self, shot: Shot, device: torch.device) -> Tensor:
        if shot not in self._features:
            case, z = self.support[shot[0]], shot[1]
            picture = torch.from_numpy(case.image((z, 0, 0), (z + 1, *case.shape[1:]))[:, 0])
            self._features[shot] = self.encode(_padded(picture[None]).to(device))
        return self._features[shot]

    def _plane(self, shot: Shot) -> npt.NDArray[Any]:
        case, z = self.support[shot[0]], shot[1]
        plane: npt.NDArray[Any] = case.label((z, 0, 0), (z + 1, *case.shape[1:]))[0]
        return plane


def _first_channel(case: Case) -> Volume:
    channel: Volume = np.asarray(case.pixels[0:1], dtype=np.float32)[0]
    return channel


def _has_extent(case: Case) -> bool:
    """Whether distances along z mean something."""
    return case.spacing_mm is not None and case.shape[0] > 1


def _mm(case: Case) -> tuple[float, float, float]:
    assert case.spacing_mm is not None
    return case.spacing_mm


def _padded(picture: Tensor, multiple: int = 32) -> Tensor:
    """Add zeros below and to the right, up to a multiple."""
    height, width = picture.shape[-2:]
    return F.pad(picture, (0, -width % multiple, 0, -height % multiple))


def _join(shots: Sequence[Prototypes]) -> Prototypes:
    vectors = torch.cat([shot.together().vectors for shot in shots], dim=1)
    return Prototypes(vectors, torch.cat([shot.together().valid for shot in shots], dim=1))
