"""Few-shot Dice of DenseMP weights on the validation cases of a fold, as papers and as users measure it.

    python benchmarks/fewshot.py WEIGHTS.pt --workspace . [--fold 0] [--classes "left kidney"] [--random]

``published`` follows SSL-ALPNet and DenseMP: the true extent of the class along z is known, split into three
parts, each served by the middle slice of the same part of the support; only slices of the extent are scored,
so that false positives elsewhere cost nothing. The other modes know nothing of the query and score every
slice. ``position`` matches slices by their position in the body. ``fit`` is what users get: it fits the
support onto the query, and adds the place and the look of pixels to what the network says. ``outline`` takes
what the fit carries over as it is, and ``outline and look`` lets that move, both without any network.

WEIGHTS.pt is a run's ``last.pt``, or what a phase left (``contrastive.pt``, ``superpixel.pt``). ``--random``
takes its plan and leaves the encoder random.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from medplan import checkpoint, registry
from medplan.networks.carried import Carried
from medplan.plan.schema import Plan
from medplan.predict.sliding_window import predict_classes
from medplan.samples.cases import Case, CaseStore
from medplan.samples.slices import slices_with
from medplan.workspace import Workspace

Mask = npt.NDArray[np.bool_]
MODES = ("published", "position", "fit", "outline", "outline and look")
Fits = dict[tuple[str, str], dict[int, Carried]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--workspace", type=Path)
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--classes", nargs="+", help="default: the novel ones of the plan")
    parser.add_argument("--random", action="store_true", help="leave the encoder as it is drawn")
    parser.add_argument("--encoder", type=Path, help="with --random: take the backbone from this file")
    parser.add_argument("--per-mm", type=float, help="instead of the plan's config.per_mm")
    parser.add_argument("--shots", type=int, default=1, help="more: cases that were trained on show it, too")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    state = checkpoint.load(options.weights)
    plan = checkpoint.plan_of(state, path=options.weights)
    plan = replace(plan, encoder_weights=None)
    if options.per_mm is not None:
        plan = replace(plan, config={**plan.config, "per_mm": options.per_mm})
    torch.manual_seed(plan.training.seed)
    method = registry.find(plan.method)(plan)
    if not options.random:
        checkpoint.restore(method, state["weights"], where=str(options.weights))
    if options.encoder is not None:
        method.load_encoder(checkpoint.load_published(options.encoder))
    method.to(options.device).eval()
    space = Workspace.open(options.workspace)
    store = CaseStore(folders_of(space, plan), plan, options.fold)
    start = time.monotonic()
    classes = options.classes or plan.learned[0].novel
    dice = dice_of_all(method, plan, store, classes, options.device, shots=options.shots)
    for mode in MODES:
        listed = "  ".join(f"{name} {100 * of[mode]:.1f}" for name, of in dice.items())
        mean = float(np.mean([of[mode] for of in dice.values()]))
        print(f"{mode:<16} mean {100 * mean:5.1f}  {listed}")
    counts = f"{len(store.role('validation'))} cases, {options.shots} shot"
    print(f"{counts}, {time.monotonic() - start:.0f} s", file=sys.stderr)


def folders_of(space: Workspace, plan: Plan) -> dict[str, Path]:
    """Return where the preprocessed cases of each dataset lie."""
    return {
        dataset.name: space.preprocessed_folder(dataset.name, dataset.preprocessed_name(plan.grid))
        for dataset in plan.datasets
    }


def dice_of_all(
    method: Any,
    plan: Plan,
    store: CaseStore,
    classes: Sequence[str],
    device: str,
    fits: Fits | None = None,
    *,
    shots: int = 1,
) -> dict[str, dict[str, float]]:
    """Return, per class and mode, the mean Dice over the validation cases that show it.

    Args:
        fits: where fits are kept, which do not depend on the network, but on the examples.
        shots: examples: the support case, and then cases that were trained on.
    """
    fits = {} if fits is None else fits
    method.encode = remembering(method.encode)
    names = plan.learned[0].labels.names
    support = [store[key] for key in (*store.role("support"), *store.role("labelled"))[:shots]]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in classes}
    for key in store.role("validation"):
        case = store[key]
        for name in classes:
            found[name].append(score(method, plan, case, support, names.index(name) + 1, device, fits))
    return {
        name: {mode: round(float(np.nanmean([one[mode] for one in several])), 4) for mode in MODES}
        for name, several in found.items()
    }


@torch.no_grad()
def score(
    method: Any, plan: Plan, case: Case, support: list[Case], code: int, device: str, fits: Fits
) -> dict[str, float]:
    """Return the Dice of one class, by mode; NaN where the query does not show it."""
    shown = [only(other, code) for other in support if code in other.locations]
    truth = case.label() == code
    found = slices_with(case, code)
    if not len(found):
        return dict.fromkeys(MODES, float("nan"))
    extent = (int(found[0]), int(found[-1]))
    labels = replace(plan.learned[0].labels, names=("class",), values=((1,),))
    dice = {}
    for mode in MODES[:3]:
        prompts = {"extent": {1: extent}} if mode == "published" else {}
        known = fits.get((case.key, labels_of(plan)[code - 1])) if mode == "fit" else None
        matched = "fit" if mode == "fit" and known is None else "position"
        method.config = replace(method.config, correspondence=matched)
        query = replace(case, prompts={**prompts, "classes": ("class",)})
        predictor = method.predictor(query, shown)
        if mode == "fit":
            predictor.carried = fits[case.key, labels_of(plan)[code - 1]] = known or predictor.carried
        predicted = predict_classes(predictor, query, labels, patch_size=plan.patch_size, device=device) == 1
        inside = slice(extent[0], extent[1] + 1) if mode == "published" else slice(None)
        dice[mode] = overlap(predicted[inside], truth[inside])
    carried = predictor.carried[1]
    for mode, per_look in (("outline", 0.0), ("outline and look", predictor.per_look)):
        weights = {"per_mm": predictor.per_mm, "per_look": per_look, "absent": -1.0}
        planes = [
            carried.worth((z, 0, 0), (z + 1, *case.shape[1:]), **weights) > 0 for z in range(case.shape[0])
        ]
        dice[mode] = overlap(np.stack(planes), truth)
    return dice


def labels_of(plan: Plan) -> tuple[str, ...]:
    return plan.learned[0].labels.names


def overlap(one: Mask, other: Mask) -> float:
    return float(2 * (one & other).sum() / max(1, one.sum() + other.sum()))


def remembering(encode: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    """Encode equal pictures once: classes and modes look at the same slices."""
    known: dict[int, torch.Tensor] = {}

    def call(pictures: torch.Tensor) -> torch.Tensor:
        key = hash(pictures.cpu().numpy().tobytes())
        if key not in known:
            known[key] = encode(pictures)
        return known[key]

    return call


def only(case: Case, code: int) -> Case:
    """Return an example that shows one class, as code 1, and nothing else."""
    codes = (case.label() == code).astype(np.int16)
    return replace(case, codes=codes, locations={1: case.locations[code]})


if __name__ == "__main__":
    main()
