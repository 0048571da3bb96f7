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
    """One timed command, with its children: seconds, and MiB at the worst moment.

    Attributes:
        peak_rss_mib: of the largest single process, as the kernel counts it.
        peak_tree_mib: of all processes together, sampled every 20 ms; pages that they share count once.
    """

    wall_s: float
    cpu_s: float
    peak_rss_mib: float
    peak_tree_mib: float


def measure(command: list[str], environment: dict[str, str]) -> Run:
    """Run a command to its end (Linux)."""
    peak = [0.0]
    done = threading.Event()
    with tempfile.TemporaryFile() as output:
        start = time.perf_counter()
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)

        def watch() -> None:
            while not done.wait(0.02):
                peak[0] = max(peak[0], sum(map(resident_mib, family(process.pid))))

        watcher = threading.Thread(target=watch)
        watcher.start()
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        done.set()
        watcher.join()
        if process.returncode:
            output.seek(0)
            sys.exit(f"{' '.join(command)}\n{output.read().decode(errors='replace')[-3000:]}")
    rss = usage.ru_maxrss / 1024
    return Run(
        wall_s=wall,
        cpu_s=usage.ru_utime + usage.ru_stime,
        peak_rss_mib=rss,
        peak_tree_mib=max(rss, peak[0]),
    )


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


def shown(run: Run) -> str:
    times = f"{run.wall_s:7.2f} s wall  {run.cpu_s:7.2f} s CPU"
    return f"{times}  {run.peak_rss_mib:6.0f} MiB one process  {run.peak_tree_mib:6.0f} MiB all"


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
    print(f"medplan  {shown(ours)}")
    if arguments.nnunet_python:
        python = arguments.nnunet_python.absolute()
        theirs = best(
            [run_nnunet(python, arguments.dataset, arguments.workers) for _ in range(arguments.runs)]
        )
        figures["nnunet"] = theirs
        print(f"nnU-Net  {shown(theirs)}")
        print(f"ratio    {ours.wall_s / theirs.wall_s:7.3f} wall (at most 0.10)", end="")
        print(f"  {ours.peak_tree_mib / theirs.peak_tree_mib:.3f} memory (at most 0.15)")
    if arguments.json:
        arguments.json.write_text(json.dumps({name: vars(run) for name, run in figures.items()}, indent=1))


if __name__ == "__main__":
    main()
