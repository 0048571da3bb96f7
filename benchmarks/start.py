"""How long a command takes to answer ``--help``, side by side with nnU-Net.

    python benchmarks/start.py [--nnunet-python PATH/TO/python]

Whole processes, the fastest of several runs. Bound: 0.06 of nnU-Net's time for ``medplan --help``, which must
also stay within 0.15 s of ``python -c pass``.
"""

import argparse
import sys
from pathlib import Path

from measurement import best, measure, ratios, shown, write_record

TARGETS = {"wall": 0.06}
OVER_PASS_S = 0.15


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nnunet-python", type=Path, help="python of an environment with nnunetv2")
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    tools = Path(sys.executable).parent
    commands: dict[str, list[str | Path]] = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "medplan --help": [tools / "medplan", "--help"],
        "medplan train --help": [tools / "medplan", "train", "--help"],
    }
    if arguments.nnunet_python:
        peer = arguments.nnunet_python.absolute().parent
        tools_there = ("train", "predict", "plan_and_preprocess", "evaluate_folder")
        commands |= {f"nnUNetv2_{tool} -h": [peer / f"nnUNetv2_{tool}", "-h"] for tool in tools_there}
    runs = {}
    for name, command in commands.items():
        measure(command)
        runs[name] = best([measure(command, pause_s=0.01) for _ in range(arguments.runs)])
        print(f"{name:<32}{runs[name]}", flush=True)
    over = runs["medplan --help"].wall_s - runs["python -c pass"].wall_s
    print(f"medplan --help takes {over:.3f} s more than python -c pass (at most {OVER_PASS_S})")
    if arguments.nnunet_python:
        theirs = runs["nnUNetv2_train -h"]
        ratio = {name: ratios(runs[name], theirs) for name in ("medplan --help", "medplan train --help")}
        for name, figures in ratio.items():
            print(shown(f"ratio, {name}", figures, TARGETS))
        figures = {**runs, "seconds over python -c pass": over, "ratio": ratio, "targets": TARGETS}
        write_record("start", figures, nnunet_python=arguments.nnunet_python.absolute())


if __name__ == "__main__":
    main()
