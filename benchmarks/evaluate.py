"""Time the evaluation of a folder as a whole process, beside nnU-Net's where that is installed.

    python benchmarks/evaluate.py --nnunet-python /path/to/venv/bin/python
    python benchmarks/evaluate.py --predictions P --references R --labels 1 2

Without folders it makes ten volumes of the size of a left-atrium scan. nnU-Net has no surface distances, so
the ratio (at most 0.20 of the time) is that of the overlap scores; what the surface distances add is printed
besides. That both agree in every Dice is checked. Of several runs the fastest counts.
"""

import argparse
import json
import math
import sys
import tempfile
from pathlib import Path

import numpy as np
from measurement import Run, best, measure, ratios, shown, write_record

TARGETS = {"wall": 0.20}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--predictions", type=Path, help="folder of label files")
    parser.add_argument("--references", type=Path, help="folder of label files with the same names")
    parser.add_argument("--labels", type=int, nargs="+", default=[1], help="values of the classes")
    parser.add_argument("--nnunet-python", type=Path, help="python of an environment with nnunetv2")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if arguments.predictions is None or arguments.references is None:
            arguments.predictions, arguments.references = make_cases(folder)
        describe(folder / "raw_data" / "Benchmark", arguments.labels)
        compare(arguments, folder)


def compare(arguments: argparse.Namespace, folder: Path) -> None:
    """Run each side, print its figures and keep them."""
    own = [
        sys.executable, "-m", "medplan", "evaluate", "-i", str(arguments.predictions), "-r",
        str(arguments.references), "-d", "Benchmark", "--workspace", str(folder), "--workers",
        str(arguments.workers),
    ]  # fmt: skip
    commands = {
        "medplan, overlap": [*own, "--no-surface", "-o", str(folder / "overlap")],
        "medplan, overlap and surface": [*own, "-o", str(folder / "surface")],
    }
    if arguments.nnunet_python:
        python = arguments.nnunet_python.absolute()
        commands["nnU-Net"] = [
            str(python), str(python.parent / "nnUNetv2_evaluate_simple"), str(arguments.references),
            str(arguments.predictions), "-l", *map(str, arguments.labels), "-o", str(folder / "nnunet.json"),
            "-np", str(arguments.workers),
        ]  # fmt: skip
    environment = {f"nnUNet_{part}": str(folder) for part in ("raw", "preprocessed", "results")}
    figures: dict[str, Run] = {}
    for name, command in commands.items():
        figures[name] = best([measure(command, environment) for _ in range(arguments.runs)])
        print(f"{name:<30}{figures[name]}", flush=True)
    if arguments.nnunet_python:
        ratio = ratios(figures["medplan, overlap"], figures["nnU-Net"])
        print(shown("ratio", ratio, TARGETS))
        agree(folder / "overlap" / "summary.json", folder / "nnunet.json")
        record = {**figures, "ratio": ratio, "targets": TARGETS}
        write_record("evaluate", record, nnunet_python=arguments.nnunet_python.absolute())


def make_cases(folder: Path) -> tuple[Path, Path]:
    """Write ten references and predictions: a bumpy ball, and the same one moved by a few voxels."""
    from medplan.data.images import Geometry, write_label

    shape = (88, 140, 190)
    geometry = Geometry(shape=shape, spacing_mm=(0.625, 0.625, 0.625))
    index = np.indices(shape, dtype=np.float32)
    for number in range(10):
        rng = np.random.default_rng(number)
        offset = [axis - size / 2 for axis, size in zip(index, shape, strict=True)]
        phase = rng.uniform(0, 2 * math.pi)
        radius = 32 + 4 * np.sin(np.arctan2(offset[1], offset[2]) * 6 + phase) + 3 * np.cos(offset[0] / 4)
        reference = (sum(part**2 for part in offset) < radius**2).astype(np.uint8)
        prediction = np.roll(reference, tuple(rng.integers(-2, 3, 3)), axis=(0, 1, 2))
        for name, array in (("predictions", prediction), ("references", reference)):
            (folder / name).mkdir(exist_ok=True)
            write_label(folder / name / f"case{number:02d}.nii.gz", array, geometry)
    return folder / "predictions", folder / "references"


def describe(folder: Path, labels: list[int]) -> None:
    """Write the dataset.json that tells what the label values mean."""
    folder.mkdir(parents=True)
    classes = {"background": 0} | {f"class {value}": value for value in labels}
    content = {"channel_names": {"0": "MR"}, "labels": classes, "numTraining": 0, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(content))


def agree(ours: Path, theirs: Path) -> None:
    """Stop if a Dice differs between the two summaries."""

    def scores(path: Path) -> dict[tuple[str, str], float]:
        entries = json.loads(path.read_text())["metric_per_case"]
        return {
            (Path(entry["reference_file"]).name, key): metrics["Dice"]
            for entry in entries
            for key, metrics in entry["metrics"].items()
        }

    first, second = scores(ours), scores(theirs)
    differing = [
        key
        for key in first | second
        if not np.isclose(first[key], second[key], rtol=0, atol=1e-9, equal_nan=True)
    ]
    if differing:
        sys.exit(f"the Dice differs in {len(differing)} of {len(first)} scores, such as {differing[0]}")
    print(f"all {len(first)} Dice scores agree")


if __name__ == "__main__":
    main()
