"""A decoder that answers at any point of an image: a coarse network everywhere, a fine one where it counts.

Source: Wei et al. 2024, "I-MedSAM", arXiv:2311.17081, section 3.3; released code (no licence; read, not
copied).

Differs, unless `compat`:
* coordinates are those of pixel centres, so that a point has one code whatever the grid; the released code
  puts the first and last pixel on the border;
* the code opens from raw coordinates over low to high frequencies. The released layout begins with sines of a
  constant third axis, and ends with the raw coordinates. Both have 63 entries: the third axis leaves its
  place to more frequencies, and keeps a raw coordinate, the position of a slice in its volume;
* the coarse logit is never dropped; the released code doubles it or sets it to 0 at random, also in the
  answer;
* the share of refined points is one of each image, not of the batch.

Differs, always: statistics of batch normalisation are updated once a step, where the released code runs the
network twice; and doubt is told by dropped channels in prediction as well, where the released code drops
nothing, so that all points tie and a band of rows is refined.

Shapes: B images, P points, C channels, F features; Y X the grids of the maps. Positions are (row, column) in
[-1, 1], -1 and 1 being the borders of the image.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medplan.errors import MethodError

__all__ = [
    "CoordinateCode", "ImplicitDecoder", "Uncertainty", "Widths", "drawn_points", "num_open",
    "pixel_positions", "place_in_box",
]  # fmt: skip

Uncertainty = Literal["mc", "margin"]

NUM_ENTRIES = 63
BOX_ENTRIES = 3
CHUNK_POINTS = {"cpu": 8_192}
"""Points that pass through the networks at once in prediction, by device: on a CPU 0.1 GB at the published
widths, which its allocator and caches take better than more; elsewhere `MANY_POINTS`, eight times that."""
MANY_POINTS = 65_536


def num_open(openness: float) -> int:
    """Return how many entries of the code are open at a fraction of the way to all of them (1 and beyond)."""
    return min(math.floor(NUM_ENTRIES * openness) + 3, NUM_ENTRIES)


def pixel_positions(shape: tuple[int, int], index_P: Tensor, *, corners: bool = False) -> Tensor:
    """Return the positions (P, 2) of the pixels with flattened (row-major) indices of a grid.

    Args:
        corners: put the first and last pixel of each axis on the border, as in `torch.linspace(-1, 1, n)`;
            otherwise pixel centres.
    """
    height, width = shape
    axes = []
    for number, size in ((index_P // width, height), (index_P % width, width)):
        if corners:
            line = torch.linspace(-1, 1, size, device=index_P.device)
        else:
            line = (2 * torch.arange(size, device=index_P.device, dtype=torch.float32) + 1) / size - 1
        axes.append(line[number])
    return torch.stack(axes, dim=-1)


def drawn_points(shape: tuple[int, int], number: int, device: torch.device) -> Tensor | None:
    """Return flattened indices of so many pixels of a grid, drawn without repeats, or None for all of them.

    All are taken where `number` is 0, or as many as there are.
    """
    there = math.prod(shape)
    return torch.randperm(there, device=device)[:number] if 0 < number < there else None


def place_in_box(position_P2: Tensor, box_B4: Tensor) -> Tensor:
    """Return (B, P, 3): where each point lies in the box of each image.

    Row and column are -1 and 1 on the sides of the box, and at most 2 away from its middle; the third entry,
    at most 4, is 1 on the ellipse that touches the sides.

    Args:
        box_B4: x0, y0, x1, y1, the image reaching from -1 to 1.
    """
    lower_B12, upper_B12 = box_B4[:, None, :2].flip(-1), box_B4[:, None, 2:].flip(-1)
    place_BP2 = (2 * position_P2 - lower_B12 - upper_B12) / (upper_B12 - lower_B12)
    radius_BP1 = place_BP2.square().sum(-1, keepdim=True)
    return torch.cat([place_BP2.clamp(-2, 2), radius_BP1.clamp_max(4)], dim=-1)


@dataclass(frozen=True, kw_only=True)
class Widths:
    """Of the decoder's layers; the defaults are the paper's.

    Attributes:
        coarse, fine: of the networks' layers.
        head: of the last layer before each answer.
        features: what the coarse network hands to the fine one, beside its logit.
    """

    coarse: tuple[int, int] = (1024, 512)
    fine: tuple[int, int] = (256, 256)
    head: int = 128
    features: int = 256


@dataclass(frozen=True, kw_only=True)
class CoordinateCode:
    """Sines and cosines of coordinates.

    Attributes:
        max_exponent: the highest frequency is 2 to this power; above log2(n / 4) the waves are too fine for a
            grid of n pixels per side.
        compat: the released layout, see the module.
    """

    max_exponent: float = 10.0
    compat: bool = False

    def __call__(self, position_P2: Tensor, depth: float | Tensor = 0.0) -> Tensor:
        """Return code_P63 (or code_BP63 for a depth per image), float32.

        Args:
            depth: position of the slice in its volume in [-1, 1]; 0 for pictures. Compat takes -1 in its
                place.
        """
        position_P2 = position_P2.float()
        if self.compat:
            return self._released(position_P2)
        frequencies = 2 ** torch.linspace(0, self.max_exponent, 15, device=position_P2.device)
        argument_P2L = 2 * math.pi * position_P2[..., None] * frequencies
        waves_PL4 = torch.cat([argument_P2L.sin(), argument_P2L.cos()], dim=1).transpose(1, 2)
        known_P62 = torch.cat([position_P2, waves_PL4.flatten(1)], dim=1)
        if isinstance(depth, Tensor):
            known_P62 = known_P62.expand(len(depth), -1, -1)
            depth_B11 = depth.float().to(known_P62.device).reshape(-1, 1, 1)
            return torch.cat([depth_B11.expand(-1, known_P62.shape[1], 1), known_P62], dim=-1)
        return torch.cat([torch.full_like(known_P62[:, :1], depth), known_P62], dim=-1)

    def _released(self, position_P2: Tensor) -> Tensor:
        # The order of the operations is the original's: arguments reach 6000, where float32 has few digits
        # left.
        position_P3 = torch.cat([torch.full_like(position_P2[:, :1], -1), position_P2], dim=1)
        frequencies = 2.0 ** torch.linspace(0.0, self.max_exponent, 10, device=position_P2.device)
        argument = (2 * math.pi * position_P3[..., None] * frequencies).flatten(1)
        return torch.cat([argument.sin(), (argument + math.pi / 2).sin(), position_P3], dim=1)


class ImplicitDecoder(nn.Module):
    """From maps of an image to the logit of a class at any points.

    Args:
        num_classes: heads; every answer is about one of them.
        in_features: channels of the image's map and of the positional map together.
        code: makes the coordinates' part of the input.
        widths: of the layers.
        knows_box: say of each point where it lies in the box. The paper leaves this to the maps.
        dropout: of these features in training; and what `mc` uncertainty drops.
        share: of each image's points that are refined, in [0, 1].
        uncertainty: ``mc`` refines where outputs vary most over `passes` random choices of dropped channels
            (one choice for all points); ``margin`` where the probability is nearest to 1/2.
    """

    def __init__(
        self,
        num_classes: int,
        in_features: int,
        *,
        code: CoordinateCode,
        widths: Widths | None = None,
        knows_box: bool = False,
        dropout: float = 0.5,
        passes: int = 2,
        share: float = 0.125,
        uncertainty: Uncertainty = "mc",
    ) -> None:
        super().__init__()
        self.code, self.dropout, self.passes = code, dropout, passes
        self.share, self.uncertainty, self.knows_box = share, uncertainty, knows_box
        widths = widths or Widths()
        inputs = in_features + NUM_ENTRIES + BOX_ENTRIES * knows_box
        self.coarse = nn.Sequential(*_layer(inputs, widths.coarse[0]), *_layer(*widths.coarse))
        self.fine = nn.Sequential(*_layer(inputs + widths.features, widths.fine[0]), *_layer(*widths.fine))
        self.coarse_heads = nn.ModuleList(
            nn.Linear(widths.coarse[1], 1 + widths.features) for _ in range(num_classes)
        )
        self.fine_heads = nn.ModuleList(
            nn.Sequential(*_layer(widths.fine[1], widths.head), nn.Linear(widths.head, 1))
            for _ in range(num_classes)
        )

    def forward(
        self,
        map_BCYX: Tensor,
        positional_CYX: Tensor,
        shape: tuple[int, int],
        classes: Sequence[int],
        *,
        index_P: Tensor | None = None,
        box_B4: Tensor | None = None,
        depth_B: Tensor | None = None,
        openness: float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        """Answer at points of a grid over the image, all at once; for training.

        Args:
            map_BCYX: of the images.
            positional_CYX: the same for all images.
            shape: of the grid that is asked about.
            classes: of each image.
            index_P: flattened indices of points of the grid; None for all.
            box_B4: see `place_in_box`; None is the whole image.
            depth_B: see `CoordinateCode`.
            openness: see `num_open`.

        Returns: coarse_BP and fine_BP, logits; where nothing was refined they are equal.
        """
        index_P = torch.arange(math.prod(shape), device=map_BCYX.device) if index_P is None else index_P
        input_BPF = self.features(map_BCYX, positional_CYX, shape, index_P, box_B4, depth_B, openness)
        output_BPF = self.coarse_output(input_BPF, classes)
        if self.code.compat:
            return self._released(input_BPF, output_BPF, classes)
        coarse_BP = output_BPF[..., 0]
        chosen_BK = self.doubt(output_BPF).topk(math.floor(self.share * len(index_P)), dim=1).indices
        if chosen_BK.shape[1] == 0:
            return coarse_BP, coarse_BP
        features_BPF = F.dropout(output_BPF[..., 1:], self.dropout, self.training)
        joined_BKF = torch.cat([_at(input_BPF, chosen_BK), _at(features_BPF, chosen_BK)], dim=-1)
        fine_BK = self.fine_output(joined_BKF, classes)
        return coarse_BP, coarse_BP.scatter(1, chosen_BK, fine_BK.to(coarse_BP.dtype))

    def answer(
        self,
        map_1CYX: Tensor,
        positional_CYX: Tensor,
        shape: tuple[int, int],
        of_class: int,
        *,
        box_4: Tensor | None = None,
        depth: float = 0.0,
        openness: float = 1.0,
        chunk_points: int | None = None,
    ) -> Tensor:
        """Answer on a whole grid of any size for one image, in eval mode, with bounded memory.

        Equal to `forward` whatever the chunks. Returns logits (Y, X), float32 or better.
        """
        number, device = math.prod(shape), map_1CYX.device
        chunk_points = chunk_points or CHUNK_POINTS.get(device.type, MANY_POINTS)
        depth_B = torch.tensor([depth], device=device)
        box_B4 = None if box_4 is None else box_4[None]
        kind = map_1CYX.dtype if map_1CYX.dtype == torch.float64 else torch.float32
        logits_P = torch.empty(number, device=device, dtype=kind)
        doubt_P = torch.empty(number, device=device, dtype=torch.float32)

        def coarse(index_P: Tensor) -> tuple[Tensor, Tensor]:
            input_1PF = self.features(map_1CYX, positional_CYX, shape, index_P, box_B4, depth_B, openness)
            return input_1PF, self.coarse_output(input_1PF, [of_class])

        for index_P in torch.split(torch.arange(number, device=device), chunk_points):
            _, output_1PF = coarse(index_P)
            logits_P[index_P] = output_1PF[0, :, 0].to(kind)
            doubt_P[index_P] = self.doubt(output_1PF)[0].float()
        chosen_K = doubt_P.topk(math.floor(self.share * number)).indices.sort().values
        del doubt_P
        for index_P in torch.split(chosen_K, chunk_points):
            if len(index_P):
                input_1PF, output_1PF = coarse(index_P)
                joined = torch.cat([input_1PF, output_1PF[..., 1:].to(input_1PF.dtype)], dim=-1)
                logits_P[index_P] = self.fine_output(joined, [of_class])[0].to(kind)
        return logits_P.view(shape)

    def features(
        self,
        map_BCYX: Tensor,
        positional_CYX: Tensor,
        shape: tuple[int, int],
        index_P: Tensor,
        box_B4: Tensor | None = None,
        depth_B: Tensor | None = None,
        openness: float = 1.0,
    ) -> Tensor:
        """Return input_BPF: both maps, interpolated bilinearly at the points, and their coordinate code;
        after these the place in the box, if that is known.
        """
        centres_P2 = pixel_positions(shape, index_P)
        grid_1P12 = centres_P2.flip(-1)[None, :, None]
        code_compat = self.code.compat
        code = self.code(pixel_positions(shape, index_P, corners=True) if code_compat else centres_P2,
                         0.0 if depth_B is None or code_compat else depth_B)  # fmt: skip
        opened = num_open(openness)
        if opened < NUM_ENTRIES:
            code = torch.cat([code[..., :opened], torch.zeros_like(code[..., opened:])], dim=-1)
        parts = [
            _sample(map_BCYX, grid_1P12.expand(len(map_BCYX), -1, -1, -1)),
            _sample(positional_CYX[None], grid_1P12).to(map_BCYX.dtype).expand(len(map_BCYX), -1, -1),
            code.to(map_BCYX.dtype).expand(len(map_BCYX), -1, -1),
        ]
        if self.knows_box:
            if box_B4 is None:
                box_B4 = torch.tensor([[-1.0, -1.0, 1.0, 1.0]], device=map_BCYX.device)
            place_BP3 = place_in_box(centres_P2, box_B4).to(map_BCYX.dtype)
            parts.append(place_BP3.expand(len(map_BCYX), -1, -1))
        return torch.cat(parts, dim=-1)

    def coarse_output(self, input_BPF: Tensor, classes: Sequence[int]) -> Tensor:
        """Return (B, P, 1 + features): the coarse logit and what the fine network gets beside the input."""
        return _by_class(self.coarse_heads, _flat(self.coarse, input_BPF), classes)

    def fine_output(self, joined_BKF: Tensor, classes: Sequence[int]) -> Tensor:
        """Return fine_BK from inputs and coarse features."""
        return _by_class(self.fine_heads, _flat(self.fine, joined_BKF), classes)[..., 0]

    @torch.no_grad()
    def doubt(self, output_BPF: Tensor) -> Tensor:
        """Return doubt_BP: the higher, the rather is a point refined."""
        if self.uncertainty == "margin":
            return -output_BPF[..., 0].abs()
        generator = torch.Generator("cpu").manual_seed(0)
        shape = (self.passes, output_BPF.shape[-1])
        kept_TF = torch.rand(shape, generator=generator, device="cpu") >= self.dropout
        scale_TF = (kept_TF / (1 - self.dropout)).to(output_BPF, non_blocking=True)
        # The variance over passes of a channel that is only scaled is the variance of its scales.
        spread_F = scale_TF.var(0) / output_BPF.shape[-1]
        return output_BPF.square() @ spread_F

    def _released(
        self, input_BPF: Tensor, output_BPF: Tensor, classes: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Do as the released code does: everything dropped, the share one of the whole batch."""
        passes = [F.dropout(output_BPF, self.dropout, self.training) for _ in range(self.passes)]
        doubt_BP = torch.stack(passes).var(0).mean(-1)
        output_BPF = passes[-1]
        chosen_K = doubt_BP.flatten().topk(math.floor(self.share * doubt_BP.numel())).indices
        coarse_BP = output_BPF[..., 0]
        if len(chosen_K) == 0:
            return coarse_BP, coarse_BP
        if len(set(classes)) > 1:
            raise MethodError("compat: the released code takes one class per batch; use --batch-size 1.")
        joined = torch.cat([input_BPF, output_BPF[..., 1:]], dim=-1).flatten(0, 1)[chosen_K]
        fine_K = self.fine_output(joined[None], classes[:1])[0]
        flat = coarse_BP.flatten().scatter(0, chosen_K, fine_K.to(coarse_BP.dtype))
        return coarse_BP, flat.view_as(coarse_BP)


def _layer(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    linear = nn.Linear(inputs, outputs)
    return linear, nn.BatchNorm1d(outputs), nn.ReLU(inplace=True)


def _flat(network: nn.Module, x_BPF: Tensor) -> Tensor:
    """Let the points of all images pass as one batch, over which they are normalised."""
    answer: Tensor = network(x_BPF.flatten(0, 1))
    return answer.view(*x_BPF.shape[:2], -1)


def _by_class(heads: nn.ModuleList, x_BPF: Tensor, classes: Sequence[int]) -> Tensor:
    """Send every image through the head of its class."""
    if len(set(classes)) == 1:
        return _flat(heads[classes[0]], x_BPF)
    parts: list[Tensor | None] = [None] * len(x_BPF)
    for number in sorted(set(classes)):
        members = [place for place, own in enumerate(classes) if own == number]
        # Not by an index, for which the host would wait for the device.
        own_BPF = torch.stack([x_BPF[place] for place in members])
        for place, answer in zip(members, _flat(heads[number], own_BPF), strict=True):
            parts[place] = answer
    return torch.stack([part for part in parts if part is not None])


def _sample(map_BCYX: Tensor, grid_BP12: Tensor) -> Tensor:
    """Return (B, P, C): the maps between their pixel centres; border values reach outwards.

    Places are exact whatever the type of the maps: in bfloat16 they could be half a pixel off.
    """
    kind = torch.promote_types(map_BCYX.dtype, torch.float32)
    found = F.grid_sample(map_BCYX.to(kind), grid_BP12.to(kind), padding_mode="border", align_corners=False)
    return found.to(map_BCYX.dtype).squeeze(-1).transpose(1, 2)


def _at(x_BPF: Tensor, index_BK: Tensor) -> Tensor:
    return x_BPF.gather(1, index_BK[..., None].expand(-1, -1, x_BPF.shape[-1]))
