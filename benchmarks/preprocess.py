"""Preprocessing to 1.5 mm, whole processes, side by side with nnU-Net.

    python benchmarks/preprocess.py raw_data/Dataset901_LA [--nnunet-python PATH/TO/python]

nnU-Net runs its default preprocessing with two processes on plans for the same spacing; medplan two threads.
The fastest of several runs counts, each from an empty folder. Bounds: 0.30 of the time, 0.33 of the memory of
all processes together.
"""

import argparse
import re
import sys
import tempfile
from pathlib import Path

from measurement import Run, best, measure, ratios, shown, write_record

TARGETS = {"wall": 0.30, "memory": 0.33}

MEDPLAN = """
import sys
from pathlib import Path
from medplan.data.dataset import open_dataset
from medplan.plan.schema import DatasetPlan, Grid, Normalisation
from medplan.preprocess.run import preprocess
dataset = open_dataset(Path(sys.argv[1]))
plan = DatasetPlan(
    name=dataset.name, channels=dataset.channels, modalities=("MR",), labels=dataset.labels, folds=({},),
    normalisations=(Normalisation(scheme="zscore"),),
)
grid = Grid(spacing_mm=(float(sys.argv[3]),) * 3)
preprocess(dataset, plan, grid, Path(sys.argv[2]), workers=int(sys.argv[4]))
"""

# Its workers are spawned, so its code has to lie in files.
NNUNET = """
import sys
if __name__ == "__main__":
    from nnunetv2.experiment_planning.plan_and_preprocess_api import preprocess_dataset
    preprocess_dataset(int(sys.argv[1]), "nnUNetPlans", ["3d_fullres"], [int(sys.argv[2])])
"""

NNUNET_PLAN = """
import sys
if __name__ == "__main__":
    from nnunetv2.experiment_planning import plan_and_preprocess_api as api
    number, spacing = int(sys.argv[1]), float(sys.argv[2])
    api.extract_fingerprint_dataset(number, num_processes=2)
    api.plan_experiment_dataset(number, overwrite_target_spacing=(spacing,) * 3)
"""


def run_nnunet(python: Path, dataset: Path, folder: Path, spacing: float, workers: int, runs: int) -> Run:
    """Plan once, then return the fastest of several runs of the preprocessing alone."""
    match = re.fullmatch(r"Dataset(\d{3})_.+", dataset.name)
    number = match[1] if match else "998"
    name = dataset.name if match else f"Dataset998_{dataset.name}"
    for part in ("raw", "preprocessed", "results"):
        (folder / part).mkdir()
    (folder / "raw" / name).symlink_to(dataset.resolve(), target_is_directory=True)
    environment = {f"nnUNet_{part}": str(folder / part) for part in ("raw", "preprocessed", "results")}
    for script, text in (("plan.py", NNUNET_PLAN), ("run.py", NNUNET)):
        (folder / script).write_text(text)
    measure([python, folder / "plan.py", number, str(spacing)], environment)
    return best(
        [measure([python, folder / "run.py", number, str(workers)], environment) for _ in range(runs)]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", type=Path, help="raw dataset (the folder of dataset.json)")
    parser.add_argument("--spacing", type=float, default=1.5, help="mm, of all axes (default 1.5)")
    parser.add_argument("--nnunet-python", type=Path, help="python of an environment with nnunetv2")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3, help="of each; the fastest counts (default 3)")
    arguments = parser.parse_args()
    spacing, workers = arguments.spacing, arguments.workers
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        own = [sys.executable, "-c", MEDPLAN, arguments.dataset]
        options = [str(spacing), str(workers)]
        ours = best([measure([*own, folder / f"medplan{run}", *options]) for run in range(arguments.runs)])
        print(f"medplan  {ours}", flush=True)
        if arguments.nnunet_python:
            python = arguments.nnunet_python.absolute()
            theirs = run_nnunet(python, arguments.dataset, folder, spacing, workers, arguments.runs)
            print(f"nnU-Net  {theirs}")
            print(shown("ratio", ratios(ours, theirs), TARGETS))
            figures = {"medplan": ours, "nnunet": theirs, "ratio": ratios(ours, theirs), "targets": TARGETS}
            write_record("preprocess", figures, nnunet_python=python)


if __name__ == "__main__":
    main()
