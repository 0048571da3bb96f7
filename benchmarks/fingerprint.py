"""The fingerprint of a raw dataset, whole processes, side by side with nnU-Net.

    python benchmarks/fingerprint.py raw_data/Dataset901_LA --nnunet-python PATH/TO/python

Both start from nothing (no cache, no earlier fingerprint) with the same number of workers; the fastest of
several runs counts. Ours is measured twice: `extract` alone, and the verb ``medplan fingerprint`` with all
that it writes, which is what the bounds (0.10 of the time, 0.15 of the memory) are held against. nnU-Net
wants the dataset in a folder called ``DatasetNNN_Name``; one of any other name is shown to it under such a
name by a link.
"""

import argparse
import re
import sys
import tempfile
from pathlib import Path

from measurement import Run, best, measure, ratios, shown, write_record

TARGETS = {"wall": 0.10, "memory": 0.15}

EXTRACT = """
import sys
from pathlib import Path
from medplan.data.dataset import open_dataset
from medplan.plan.fingerprint import extract
from medplan.records import write_json
source, target, workers = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
found = extract(open_dataset(source), cache=target / "cache.jsonl", workers=workers)
write_json(found, target / "fingerprint.json")
"""


def run_extract(dataset: Path, workers: int) -> Run:
    with tempfile.TemporaryDirectory() as folder:
        return measure([sys.executable, "-c", EXTRACT, dataset, folder, str(workers)])


def run_verb(dataset: Path, workers: int) -> Run:
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw_data"
        raw.mkdir()
        (raw / dataset.name).symlink_to(dataset.resolve(), target_is_directory=True)
        flags = ["-d", dataset.name, "--workspace", folder, "--workers", str(workers)]
        return measure([sys.executable, "-m", "medplan", "fingerprint", *flags])


def run_nnunet(python: Path, dataset: Path, workers: int) -> Run:
    match = re.fullmatch(r"Dataset(\d{3})_.+", dataset.name)
    name = dataset.name if match else f"Dataset998_{dataset.name}"
    number = match[1] if match else "998"
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for part in ("raw", "preprocessed", "results"):
            (root / part).mkdir()
        (root / "raw" / name).symlink_to(dataset.resolve(), target_is_directory=True)
        environment = {f"nnUNet_{part}": str(root / part) for part in ("raw", "preprocessed", "results")}
        tool = python.parent / "nnUNetv2_extract_fingerprint"
        return measure([python, tool, "-d", number, "-np", str(workers), "--clean"], environment)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", type=Path, help="raw dataset (the folder of dataset.json)")
    parser.add_argument("--nnunet-python", type=Path, help="python of an environment with nnunetv2")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    dataset, workers = arguments.dataset, arguments.workers
    ours = best([run_verb(dataset, workers) for _ in range(arguments.runs)])
    extract = best([run_extract(dataset, workers) for _ in range(arguments.runs)])
    print(f"medplan fingerprint  {ours}\nextract alone        {extract}", flush=True)
    if arguments.nnunet_python:
        python = arguments.nnunet_python.absolute()
        theirs = best([run_nnunet(python, dataset, workers) for _ in range(arguments.runs)])
        print(f"nnU-Net              {theirs}")
        print(shown("ratio", ratios(ours, theirs), TARGETS))
        figures = {"medplan": ours, "medplan extract": extract, "nnunet": theirs}
        figures |= {"ratio": ratios(ours, theirs), "targets": TARGETS}
        write_record("fingerprint", figures, nnunet_python=python)


if __name__ == "__main__":
    main()
