"""Time the fingerprint of a raw dataset as a whole process, beside nnU-Net's where that is installed.

    python benchmarks/fingerprint.py raw_data/Dataset901_LA --nnunet-python /path/to/venv/bin/python

Both start from nothing (no cache, no earlier fingerprint) with the same number of workers. Wall time and peak
memory are those of the whole process tree; of several runs the fastest counts. nnU-Net wants the dataset in a
folder called ``DatasetNNN_Name``; a folder of any other name is shown to it under such a name by a link.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

MEDPLAN = """
import sys
from pathlib import Path
from medplan.data.dataset import open_dataset
from medplan.plan.fingerprint import extract
from medplan.records import write_json
source, target, workers = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
write_json(extract(open_dataset(source), cache=target / "cache.jsonl", workers=workers), target /
"fingerprint.json")
"""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One timed process: seconds, and MiB held by it and its children at the worst moment."""

    wall_s: float
    cpu_s: float
    peak_mib: float


def measure(command: list[str], environment: dict[str, str]) -> Run:
    """Run a command to its end, sampling the memory of its process tree every 20 ms (Linux)."""
    before = os.times()
    start = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    peak = [0.0]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], sum(map(resident_mib, family(process.pid))))

    watcher = threading.Thread(target=watch)
    watcher.start()
    output, _ = process.communicate()
    wall = time.perf_counter() - start
    done.set()
    watcher.join()
    after = os.times()
    if process.returncode:
        sys.exit(f"{' '.join(command)}\n{output.decode(errors='replace')[-3000:]}")
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return Run(wall_s=wall, cpu_s=cpu, peak_mib=peak[0])


def family(pid: int) -> list[int]:
    """Return a process and its descendants."""
    found = [pid]
    for parent in found:
        try:
            for task in Path(f"/proc/{parent}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def resident_mib(pid: int) -> float:
    """Return the proportional set size of a process: pages that several share are counted once among them."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return 0.0
    match = re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
    return int(match[1]) / 1024 if match else 0.0


def run_medplan(dataset: Path, workers: int) -> Run:
    with tempfile.TemporaryDirectory() as folder:
        return measure([sys.executable, "-c", MEDPLAN, str(dataset), folder, str(workers)], dict(os.environ))


def run_nnunet(python: Path, dataset: Path, workers: int) -> Run:
    match = re.fullmatch(r"Dataset(\d{3})_.+", dataset.name)
    name = dataset.name if match else f"Dataset998_{dataset.name}"
    number = match[1] if match else "998"
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for part in ("raw", "preprocessed", "results"):
            (root / part).mkdir()
        (root / "raw" / name).symlink_to(dataset.resolve(), target_is_directory=True)
        environment = dict(os.environ)
        environment |= {f"nnUNet_{part}": str(root / part) for part in ("raw", "preprocessed", "results")}
        tool = python.parent / "nnUNetv2_extract_fingerprint"
        return measure([str(python), str(tool), "-d", number, "-np", str(workers), "--clean"], environment)


def best(runs: list[Run]) -> Run:
    return min(runs, key=lambda run: run.wall_s)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", type=Path, help="raw dataset (the folder of dataset.json)")
    parser.add_argument("--nnunet-python", type=Path, help="python of an environment with nnunetv2")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures there too")
    arguments = parser.parse_args()
    ours = best([run_medplan(arguments.dataset, arguments.workers) for _ in range(arguments.runs)])
    figures = {"medplan": ours}
    print(f"medplan  {ours.wall_s:7.2f} s wall  {ours.cpu_s:7.2f} s CPU  {ours.peak_mib:8.0f} MiB")
    if arguments.nnunet_python:
        python = arguments.nnunet_python.absolute()
        theirs = best(
            [run_nnunet(python, arguments.dataset, arguments.workers) for _ in range(arguments.runs)]
        )
        figures["nnunet"] = theirs
        print(f"nnU-Net  {theirs.wall_s:7.2f} s wall  {theirs.cpu_s:7.2f} s CPU  {theirs.peak_mib:8.0f} MiB")
        print(f"ratio    {ours.wall_s / theirs.wall_s:7.3f} wall (at most 0.10)", end="")
        print(f"  {ours.peak_mib / theirs.peak_mib:.3f} memory (at most 0.15)")
    if arguments.json:
        arguments.json.write_text(json.dumps({name: vars(run) for name, run in figures.items()}, indent=1))


if __name__ == "__main__":
    main()
