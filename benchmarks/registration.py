"""Dice and seconds per pair of ways to bring an atlas onto other brains, on the images' own grids.

    python benchmarks/registration.py RUN RAW_DATASET [--cases ID ...] [--against RUN] [--no-classic]
                                      [--output FILE] [--picture FILE]

RUN is a fold folder of a trained ``bijros``; RAW_DATASET the raw dataset with the labels. Without ``--cases``
the validation cases of the fold are taken. Compared are, on the same affinely aligned pairs at the model's
grid:

* ``affine``: the atlas as the affine alignment left it;
* ``bspline``: SimpleITK's B-spline registration (mutual information on a quarter of the voxels, 20 steps of
  L-BFGS-B, two resolutions);
* ``demons``: SimpleITK's diffeomorphic demons after histogram matching, two resolutions;
* ``registered``: the registration branch of the model;
* ``segmented``: its segmentation branch;
* ``other``: another model that segments by itself (``--against``), without post-processing.

Labels are warped as memberships (linear), brought back to the image's own grid as logits, and compared there.
Seconds are those of registration alone, processor time of all threads; for the model one forward pass.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
import torch
from torch import Tensor

from medplan.data.dataset import open_dataset
from medplan.data.images import read_image, read_label
from medplan.learning.registration import field_quality
from medplan.methods.bijros import BiJROS
from medplan.networks.warp import warp
from medplan.predict.folder import read_support
from medplan.predict.model import Model, Options, Prepared
from medplan.preprocess.restore import LabelRestorer
from medplan.samples.cases import Case
from medplan.train.validate import class_dice

WITHOUT_POSTPROCESSING = Options(postprocessing=False)


def bspline(fixed: Any, moving: Any) -> Any:
    mesh = [max(4, side // 6) for side in fixed.GetSize()]
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(0.25, 20)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsLBFGSB(numberOfIterations=20, gradientConvergenceTolerance=1e-5)
    method.SetShrinkFactorsPerLevel([2, 1])
    method.SetSmoothingSigmasPerLevel([1, 0])
    method.SetInitialTransform(sitk.BSplineTransformInitializer(fixed, mesh), inPlace=True)
    transform = method.Execute(fixed, moving)
    return sitk.TransformToDisplacementField(
        transform, sitk.sitkVectorFloat64, fixed.GetSize(), fixed.GetOrigin(), fixed.GetSpacing()
    )


def demons(fixed: Any, moving: Any) -> Any:
    moving = sitk.HistogramMatching(moving, fixed, 256, 15, True)
    field = None
    for shrink in (2, 1):
        still, moved = sitk.Shrink(fixed, [shrink] * 3), sitk.Shrink(moving, [shrink] * 3)
        method = sitk.DiffeomorphicDemonsRegistrationFilter()
        method.SetNumberOfIterations(60)
        method.SetStandardDeviations(1.2)
        if field is None:
            field = method.Execute(still, moved)
        else:
            field = method.Execute(still, moved, sitk.Resample(field, still))
    return field


def classic(register: Callable[[Any, Any], Any], image: Tensor, atlas: Tensor) -> Tensor:
    """Return the flow (1, 3, Z, Y, X) in voxels that a SimpleITK registration finds."""
    fixed, moving = (sitk.GetImageFromArray(volume[0, 0].numpy()) for volume in (image, atlas))
    field = sitk.GetArrayFromImage(register(fixed, moving))
    return torch.from_numpy(np.moveaxis(field, -1, 0)[None, ::-1].astype(np.float32).copy())


def dice(prepared: Prepared, model: Model, logits: Tensor, truth: npt.NDArray[Any]) -> dict[str, float]:
    restorer = LabelRestorer(prepared.restoration, model.dataset.labels)
    restorer.add(logits[0].float())
    return class_dice(restorer.finish().classes, truth, model.dataset.labels)


def compare(
    method: BiJROS,
    model: Model,
    prepared: Prepared,
    atlas: Case,
    truth: npt.NDArray[Any],
    *,
    has_classic: bool,
) -> dict[str, dict[str, Any]]:
    """Return per way of the model and of SimpleITK its Dice by class, seconds and quality of the field."""
    pairing, size = method.pairing, prepared.case.shape
    batch = {
        "image": torch.from_numpy(atlas.image()[None]),
        "label": torch.from_numpy(atlas.label()[None]),
        "unlabelled_image": torch.from_numpy(prepared.case.image()[None]),
    }
    image, members = batch["unlabelled_image"], pairing.members(batch["label"])
    ways: dict[str, Callable[[], Tensor]] = {
        "affine": lambda: torch.zeros((1, 3, *size)),
        "registered": lambda: pairing.register(batch, both_ways=False).to_image,
    }
    if has_classic:
        ways["bspline"] = lambda: classic(bspline, image, batch["image"])
        ways["demons"] = lambda: classic(demons, image, batch["image"])
    found = {}
    for name, way in ways.items():
        start = time.process_time()
        flow = way()
        seconds = time.process_time() - start
        scores = dice(prepared, model, pairing.as_logits(warp(members, flow)), truth)
        similarity = -float(pairing.correlation(image, warp(batch["image"], flow)))
        found[name] = {"dice": scores, "seconds": seconds, "lncc": similarity, **field_quality(flow)}
    start = time.process_time()
    logits = method.network.segment(method.network.encode(image), size)
    seconds = time.process_time() - start
    found["segmented"] = {"dice": dice(prepared, model, logits, truth), "seconds": seconds}
    return found


def draw(method: BiJROS, case: Case, atlas: Case, path: Path) -> None:
    """Draw a slice: image, atlas, checkerboards before and after, length of the flow, both segmentations."""
    from matplotlib.figure import Figure

    pairing, size = method.pairing, case.shape
    image = torch.from_numpy(case.image()[None])
    batch = {
        "image": torch.from_numpy(atlas.image()[None]),
        "label": torch.from_numpy(atlas.label()[None]),
        "unlabelled_image": image,
    }
    flow = pairing.register(batch, both_ways=False).to_image
    z, y, x = np.indices(size) // 6 % 2
    board = (z + y + x) % 2 == 0
    fixed, before = image[0, 0].numpy(), batch["image"][0, 0].numpy()
    after = warp(batch["image"], flow)[0, 0].numpy()
    label = warp(pairing.members(batch["label"]), flow)[0].argmax(0).numpy()
    panels = {
        "image": (fixed, "gray"),
        "atlas, aligned": (before, "gray"),
        "checkerboard before": (np.where(board, fixed, before), "gray"),
        "checkerboard after": (np.where(board, fixed, after), "gray"),
        "displacement, voxels": (flow[0].norm(dim=0).numpy(), "viridis"),
        "registered": (fixed, "gray"),
        "segmented": (fixed, "gray"),
    }
    figure = Figure(figsize=(17, 3), layout="constrained")
    places = figure.subplots(1, len(panels))
    for axes, (title, (volume, colours)) in zip(places, panels.items(), strict=True):
        shown = axes.imshow(volume[size[0] // 2], cmap=colours, origin="lower")
        axes.set_title(title, fontsize=10)
        axes.set_axis_off()
        if colours == "viridis":
            figure.colorbar(shown, ax=axes, shrink=0.8)
    segmented = method.network.segment(method.network.encode(image), size)[0].argmax(0).numpy()
    for axes, shown in zip(places[-2:], (label, segmented), strict=True):
        masked = np.ma.masked_equal(shown[size[0] // 2], 0)
        axes.imshow(masked, cmap="tab20", vmin=0, vmax=19, alpha=0.5, origin="lower", interpolation="nearest")
    figure.savefig(path, dpi=80)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--cases", nargs="+")
    parser.add_argument("--checkpoint", choices=["best", "last"], default="last")
    parser.add_argument("--against", type=Path, help="run folder of a model that segments by itself")
    parser.add_argument("--no-classic", action="store_true")
    parser.add_argument("--output", type=Path, help="JSON file for all figures")
    parser.add_argument("--picture", type=Path, help="PNG file for a picture of the first case")
    options = parser.parse_args()
    model = Model.load(options.run, checkpoint=options.checkpoint, device="cpu")
    method = model.methods[0]
    assert isinstance(method, BiJROS)
    (atlas,) = read_support(options.run)
    other = options.against and Model.load(options.against, checkpoint=options.checkpoint, device="cpu")
    dataset, fold = open_dataset(options.dataset), model.folds[0]
    results: dict[str, dict[str, Any]] = {}
    for name in options.cases or model.dataset.roles(fold)["validation"]:
        case = dataset.case(name)
        assert case.label is not None
        image, raw = read_image(case.images), read_label(case.label)[0]
        prepared = model.prepare(image, name=name)
        truth = model.dataset.labels.encode(raw, where=name)
        if options.picture is not None and not results:
            draw(method, prepared.case, atlas, options.picture)
        results[name] = compare(method, model, prepared, atlas, truth, has_classic=not options.no_classic)
        if other:
            start = time.process_time()
            labels, label = other.dataset.labels, other.predict_image(image, options=WITHOUT_POSTPROCESSING)
            seconds = time.process_time() - start
            scores = class_dice(labels.encode(label, where=name), labels.encode(raw, where=name), labels)
            results[name]["other"] = {"dice": scores, "seconds": seconds}
    print(f"{'':12} {'Dice':>7} {'seconds':>8} {'LNCC':>6} {'folding %':>9}  Dice per case")
    for way in next(iter(results.values())):
        rows = [found[way] for found in results.values()]
        each = [float(np.nanmean(list(row["dice"].values()))) for row in rows]
        means = {
            key: float(np.mean([row[key] for row in rows])) if key in rows[0] else float("nan")
            for key in ("seconds", "lncc", "folding_percent")
        }
        print(
            f"{way:12} {np.mean(each):7.4f} {means['seconds']:8.2f} {means['lncc']:6.3f} "
            f"{means['folding_percent']:9.3f}  {' '.join(f'{score:.4f}' for score in each)}"
        )
    if options.output is not None:
        options.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
