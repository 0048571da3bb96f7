"""Whole processes measured side by side, and the records kept of that: wall, CPU, memory, ratios, machine."""

import datetime
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "numpy", "scipy", "scikit-image", "SimpleITK", "nibabel", "blosc2")
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


@dataclass(frozen=True, kw_only=True)
class Run:
    """One command with its children.

    Attributes:
        wall_s: from start to end.
        cpu_s: user and system seconds of all its processes.
        peak_rss_mib: of the largest single process, as the kernel counts it until the last look.
        peak_tree_mib: of all processes together, sampled; pages that several share count once.
        other_cpu_s: seconds that everything else on the machine computed meanwhile.
        printed: the lines that started with ``RESULT``, without that word.
    """

    wall_s: float
    cpu_s: float
    peak_rss_mib: float
    peak_tree_mib: float
    other_cpu_s: float
    printed: tuple[str, ...] = ()

    def __str__(self) -> str:
        times = f"{self.wall_s:8.2f} s wall {self.cpu_s:8.2f} s CPU"
        return f"{times} {self.peak_rss_mib:7.0f} MiB largest process {self.peak_tree_mib:7.0f} MiB all"


def measure(
    command: Sequence[str | Path], environment: Mapping[str, str] | None = None, *, pause_s: float = 0.03
) -> Run:
    """Run a command to its end (Linux); leave with its last output if it fails.

    Args:
        environment: variables besides those of this process.
        pause_s: between two looks at the memory; never less than twenty times what a look takes.
    """
    peak = {"rss": 0.0, "tree": 0.0}
    done = threading.Event()
    words = [str(word) for word in command]
    with tempfile.TemporaryFile() as output:
        busy, start = _busy_s(), time.perf_counter()
        process = subprocess.Popen(
            words, env=os.environ | dict(environment or {}), stdout=output, stderr=subprocess.STDOUT
        )

        def watch() -> None:
            pause = pause_s
            while not done.wait(pause):
                before = time.perf_counter()
                family = _family(process.pid)
                # Not what the kernel says after the end: that starts from the size of this process.
                peak["rss"] = max(peak["rss"], *(_mib(f"{pid}/status", "VmHWM") for pid in family))
                peak["tree"] = max(peak["tree"], sum(_mib(f"{pid}/smaps_rollup", "Pss") for pid in family))
                pause = max(pause_s, 20 * (time.perf_counter() - before))

        watcher = threading.Thread(target=watch)
        watcher.start()
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        busy = _busy_s() - busy
        process.returncode = os.waitstatus_to_exitcode(status)
        done.set()
        watcher.join()
        output.seek(0)
        text = output.read().decode(errors="replace")
    if process.returncode:
        sys.exit(f"{' '.join(words)}\n{text[-4000:]}")
    cpu = usage.ru_utime + usage.ru_stime
    return Run(
        wall_s=wall,
        cpu_s=cpu,
        peak_rss_mib=peak["rss"],
        peak_tree_mib=max(peak.values()),
        other_cpu_s=max(0.0, busy - cpu),
        printed=tuple(line[7:] for line in text.splitlines() if line.startswith("RESULT ")),
    )


def best(runs: Sequence[Run]) -> Run:
    """Return the run that took least time."""
    return min(runs, key=lambda run: run.wall_s)


def ratios(ours: Run, theirs: Run) -> dict[str, float]:
    """Return ours / theirs of each figure."""
    return {
        "wall": ours.wall_s / theirs.wall_s,
        "cpu": ours.cpu_s / theirs.cpu_s,
        "memory": ours.peak_tree_mib / theirs.peak_tree_mib,
    }


def shown(title: str, figures: Mapping[str, float], targets: Mapping[str, float]) -> str:
    """Return one line of ratios, with the target behind those that have one."""
    parts = [
        f"{name} {value:.3f}" + (f" (at most {targets[name]:g})" if name in targets else "")
        for name, value in figures.items()
    ]
    return f"{title}: " + ", ".join(parts)


def write_record(name: str, figures: Mapping[str, Any], *, nnunet_python: str | Path | None) -> Path:
    """Write ``results/<name>.json``: the figures, the command, the versions and the machine.

    Paths of this machine are cut to their last part.
    """
    words = [Path(word).name if word.startswith("/") else word for word in sys.argv[1:]]
    content = {
        "benchmark": name,
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words]),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine(),
        "versions": {"medplan": _versions(sys.executable, "medplan")},
        "figures": {key: _plain(value) for key, value in figures.items()},
    }
    if nnunet_python is not None:
        content["versions"] |= {"nnunet": _versions(nnunet_python, "nnunetv2")}
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path


def machine() -> dict[str, Any]:
    """Return cores, CPU, the instructions that matter, memory and the load of the last minutes."""
    cpu, memory = Path("/proc/cpuinfo").read_text(), Path("/proc/meminfo").read_text()
    known = set(_first(r"^flags\s*: (.*)$", cpu).split())
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": _first(r"^model name\s*: (.*)$", cpu),
        "flags": [flag for flag in FLAGS if flag in known],
        "memory_gib": round(int(_first(r"^MemTotal:\s+(\d+)", memory)) / 2**20, 1),
        "load_1_5_15_min": [round(load, 2) for load in os.getloadavg()],
        "threads": os.environ.get("OMP_NUM_THREADS", "all cores"),
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Run):
        fields = {key: round(number, 3) for key, number in asdict(value).items() if key != "printed"}
        return fields
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, float):
        return float(f"{value:.4g}")
    return value


def _versions(python: str | Path, package: str) -> dict[str, str]:
    names = (package, *PACKAGES)
    if Path(python) == Path(sys.executable):
        return {name: importlib.metadata.version(name) for name in names}
    code = "import importlib.metadata as m, json, sys\n"
    code += "print(json.dumps({name: m.version(name) for name in sys.argv[1:]}))"
    done = subprocess.run([str(python), "-c", code, *names], capture_output=True, text=True, check=True)
    versions: dict[str, str] = json.loads(done.stdout)
    return versions


def _first(pattern: str, text: str) -> str:
    match = re.search(pattern, text, re.MULTILINE)
    return match[1] if match else ""


def _busy_s() -> float:
    """Return the seconds that all cores together have computed since the machine started."""
    user, nice, system, _, _, irq, softirq, *_ = map(
        int, Path("/proc/stat").read_text().split("\n")[0].split()[1:]
    )
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def _family(pid: int) -> list[int]:
    """Return a process and its descendants."""
    found = [pid]
    for parent in found:
        try:
            for task in Path(f"/proc/{parent}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def _mib(file: str, field: str) -> float:
    try:
        text = Path(f"/proc/{file}").read_text()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return 0.0
    kilobytes = _first(rf"^{field}:\s+(\d+) kB", text)
    return int(kilobytes) / 1024 if kilobytes else 0.0


def read_log(fold: Path) -> list[dict[str, Any]]:
    """Return the lines of the training log in a fold's folder."""
    return [json.loads(line) for line in (fold / "log.jsonl").read_text().splitlines()]


def training_seconds(log: Sequence[Mapping[str, Any]]) -> float:
    """Return how long all training steps took; a line holds the mean of those since the line before it."""
    timed = [line for line in log if "seconds" in line]
    before = [0, *(line["step"] for line in timed)]
    return sum(line["seconds"] * (line["step"] - last) for line, last in zip(timed, before, strict=False))
