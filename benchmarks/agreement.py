"""How much a network's labels of unlabelled cases could teach it: do its own views of them disagree?

    python benchmarks/agreement.py FOLD PREPROCESSED [--against FOLD] [--views N] [--output FILE]

FOLD is a fold folder of a trained ``sdmessenger`` with one foreground class in three dimensions,
PREPROCESSED the dataset's folder of cases on the plan's grid (labels of unlabelled cases, where they are on
disk, are measured with). Per role, mean over cases on that grid:

* ``once``: Dice of the prediction;
* ``views``: of the mean over N turned and scaled views (up to 20 degrees, 0.8 to 1.25);
* ``contrasts``: of the mean over N views in random contrasts;
* ``confident``: share of voxels with a probability above 0.9, and ``dice_confident`` among these alone;
* with ``--against``, another training: ``alike``, the share of voxels both label alike, and ``together``,
  the Dice of the mean of both.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from medplan.checkpoint import load as load_file
from medplan.checkpoint import restore
from medplan.methods.sdmessenger import SDMessenger
from medplan.plan.schema import Plan
from medplan.records import read_json
from medplan.samples.cases import open_case
from medplan.samples.recolour import random_contrast

WHOLE = torch.eye(3, 4)


def dice(predicted: Tensor, truth: Tensor) -> float:
    return float(2 * (predicted & truth).sum() / (predicted.sum() + truth.sum()).clamp(min=1))


def turned(rng: np.random.Generator, shape: tuple[int, ...]) -> Tensor:
    """Return a random rotation and scaling as `torch.nn.functional.affine_grid` takes it (x, y, z)."""
    first, second, third = np.deg2rad(rng.uniform(-20, 20, 3))
    matrix = np.eye(3)
    for angle, (i, j) in zip((first, second, third), ((0, 1), (0, 2), (1, 2)), strict=True):
        turn = np.eye(3)
        turn[[i, j], [i, j]] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    sides = np.diag([float(side) for side in reversed(shape)])
    matrix = np.linalg.inv(sides) @ (matrix * rng.uniform(0.8, 1.25)) @ sides
    return torch.from_numpy(np.concatenate([matrix, np.zeros((3, 1))], 1)).float()


@torch.no_grad()
def probability(method: SDMessenger, image: Tensor, view: Tensor = WHOLE) -> Tensor:
    """Return the foreground's probability (Z, Y, X), seen in a view and turned back."""
    assert method.plan.pyramid is not None
    multiple = np.prod(np.array(method.plan.pyramid.strides), axis=0)
    length = np.array(image.shape[1:])
    z, y, x = np.maximum(-(-length // multiple) * multiple, method.plan.patch_size) - length
    whole = F.pad(image, (0, int(x), 0, int(y), 0, int(z)))[None]
    (logits,) = method.predictor(None, ())(resampled(whole, view), [(0, 0, 0)])  # type: ignore[arg-type]
    back = torch.linalg.inv(torch.cat([view, torch.tensor([[0.0, 0, 0, 1]])]))[:3]
    found = resampled(logits.softmax(0)[None, 1:], back)
    return found[0, 0, : length[0], : length[1], : length[2]]


def resampled(image: Tensor, view: Tensor) -> Tensor:
    grid = F.affine_grid(view[None], list(image.shape), align_corners=False)
    return F.grid_sample(image, grid, align_corners=False)


def load(fold: Path) -> SDMessenger:
    method = SDMessenger(read_json(Plan, fold / "plan.json"))
    restore(method, load_file(fold / "best.pt")["weights"], where=str(fold))
    return method.eval()


def measure(
    image: Tensor, truth: Tensor, method: SDMessenger, other: SDMessenger | None, views: int
) -> dict[str, float]:
    rng = np.random.default_rng(0)
    once = probability(method, image)
    seen = torch.stack([probability(method, image, turned(rng, image.shape[1:])) for _ in range(views)])
    lit = torch.stack([probability(method, random_contrast(image, rng)) for _ in range(views)])
    sure = (once - 0.5).abs() > 0.4
    found = {
        "once": dice(once > 0.5, truth),
        "views": dice(seen.mean(0) > 0.5, truth),
        "contrasts": dice(lit.mean(0) > 0.5, truth),
        "confident": float(sure.float().mean()),
        "dice_confident": dice((once > 0.5) & sure, truth & sure),
    }
    if other is not None:
        second = probability(other, image)
        found["alike"] = float(((once > 0.5) == (second > 0.5)).float().mean())
        found["together"] = dice(once + second > 1, truth)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("fold", type=Path)
    parser.add_argument("preprocessed", type=Path)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--views", type=int, default=8)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    method = load(options.fold)
    other = load(options.against) if options.against else None
    roles = method.plan.roles(0)
    results: dict[str, Any] = {}
    for role in ("validation", "unlabelled"):
        rows = []
        for key in roles[role]:
            case = open_case(options.preprocessed, key)
            image, truth = torch.from_numpy(case.image()), torch.from_numpy(case.label() == 1)
            rows.append(measure(image, truth, method, other, options.views))
        results[role] = {name: round(float(np.mean([row[name] for row in rows])), 3) for name in rows[0]}
        print(role, results[role], flush=True)
    if options.output:
        options.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
