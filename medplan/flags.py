"""Flags that several verbs take, in groups; names of the flags are those of the parameters."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medplan.plan.schema import Plan

__all__ = [
    "NNUNET",
    "dataset",
    "datasets",
    "device",
    "everywhere",
    "method",
    "model",
    "numbers",
    "part",
    "planning",
    "precision",
    "workers",
    "workspace",
]


NNUNET = {
    "-c": "a plan has one network, and no configurations",
    "--c": "the same command goes on where it stopped",
    "p": "the plan is that of dataset and method",
    "tr": "-m names the method",
    "val": "the same command again evaluates a finished training",
    "npz": "'medplan predict --probabilities' writes them",
    "save-probabilities": "--probabilities",
    "disable-tta": "mirroring is off unless --mirror is given",
    "continue-prediction": "cases that are finished are kept",
    "step-size": "--step",
    "chk": "--checkpoint best, or last",
    "np": "--workers, or leave it out",
    "npp": "nothing is sent between processes; leave it out",
    "nps": "nothing is sent between processes; leave it out",
    "num-parts": "--part 1/4, 2/4, ...",
    "part-id": "--part 1/4, 2/4, ...",
    "num-gpus": "start it with torchrun, see docs/architecture.md",
    "pretrained-weights": "--from RUN",
    "verify-dataset-integrity": "files are always checked",
    "gpu-memory-target": "--gpu-memory",
    "overwrite-target-spacing": "--spacing",
}
"""Flags that users of nnU-Net type from memory, and what to give instead."""


def everywhere(parser: argparse.ArgumentParser) -> None:
    """Add what every verb takes."""
    parser.add_argument("--verbose", action="store_true", help="say more")


def workspace(parser: argparse.ArgumentParser) -> None:
    """Add where the files are."""
    parser.add_argument(
        "--workspace",
        type=Path,
        help="folder with raw_data/, plans/, ... (default $MEDPLAN_WORKSPACE, else here)",
    )


def dataset(parser: argparse.ArgumentParser) -> None:
    """Add one dataset or plan."""
    parser.add_argument(
        "-d", "--dataset", required=True, help="dataset or plan name, e.g. OASIS or Dataset027_ACDC"
    )


def datasets(parser: argparse.ArgumentParser) -> None:
    """Add one dataset or several."""
    parser.add_argument(
        "-d",
        "--datasets",
        nargs="+",
        required=True,
        metavar="DATASET",
        help="e.g. OASIS, Dataset027_ACDC or 27",
    )


def method(parser: argparse.ArgumentParser) -> None:
    """Add the choice of a method."""
    parser.add_argument("-m", "--method", help="method (default: all that fit)")


def workers(parser: argparse.ArgumentParser) -> None:
    """Add the number of workers."""
    parser.add_argument(
        "--workers",
        type=_whole_number(0),
        metavar="N",
        help="parallel workers (default: as cores and memory allow)",
    )


def device(parser: argparse.ArgumentParser) -> None:
    """Add the device."""
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default auto)")


def precision(parser: argparse.ArgumentParser) -> None:
    """Add the numbers that networks compute in."""
    parser.add_argument(
        "--precision",
        choices=["auto", "bf16", "fp16", "fp32"],
        default="auto",
        help="what networks compute in (default auto: the fastest that the device has)",
    )


def model(parser: argparse.ArgumentParser) -> None:
    """Add the ways of naming a trained model."""
    parser.add_argument("--model", type=Path, metavar="DIR|ZIP", help="run folder or exported zip")
    parser.add_argument(
        "-d", "--dataset", help="dataset the model was trained on (default: the last finished run)"
    )
    parser.add_argument("-m", "--method", help="its method")
    parser.add_argument("--run", help="its run")
    parser.add_argument(
        "-f", "--folds", nargs="+", metavar="FOLD", help="folds to use (default: all that are there)"
    )
    parser.add_argument("--checkpoint", choices=["best", "last"], default="best", help="default best")


def numbers(parser: argparse.ArgumentParser) -> None:
    """Add the flags that change a plan's numbers; together with `planning` the fields of `Overrides`."""
    add = parser.add_argument
    add("--iters", dest="iterations", type=_whole_number(0), metavar="N", help="training iterations in all")
    add("--batch-size", type=_whole_number(1), metavar="N", help="samples per step")
    add("--patch-size", type=_whole_number(1), nargs="+", metavar="N", help="z y x, or y x for slices")
    add("--lr", type=float, help="base learning rate")
    add("--seed", type=int, help="of everything random")
    add(
        "--set",
        dest="settings",
        action="append",
        metavar="KEY=VALUE",
        help="any entry of the plan; repeatable",
    )


def planning(parser: argparse.ArgumentParser) -> None:
    """Add what a user may decide in the planner's place."""
    numbers(parser)
    workspace(parser)
    add = parser.add_argument
    add("--name", help="name of the plan of several datasets")
    add("--spacing", type=float, nargs="+", metavar="MM", help="target spacing: z y x, or one number")
    add("--dims", type=int, choices=[2, 3], help="slices or volumes")
    add("--gpu-memory", type=float, metavar="GB", help="memory to fill (default: the GPU's, at most 24)")
    add("--encoder", help="one of the method's encoders")
    add("--encoder-weights", metavar="FILE", help="weights to start the encoder from, or 'none'")
    add("--labelled", metavar="N|PERCENT", help="use the labels of only so many training cases")
    add("--labelled-cases", nargs="+", metavar="CASE", help="use the labels of these training cases only")
    add("--source-domain", metavar="DOMAIN", help="learn with the labels of this domain ...")
    add("--target-domain", metavar="DOMAIN", help="... for this one, whose labels are not read")
    add("--leave-out-domain", metavar="DOMAIN", help="keep this domain for testing")
    add(
        "--split",
        type=_split,
        metavar="NAME|JSON",
        help="a published split of dataset.json, a splits_final.json, or 'none' to draw folds",
    )
    add("--novel", nargs="+", metavar="CLASS", help="classes kept out of training, to be shown by an example")
    add(
        "--label-groups",
        type=_label_groups,
        metavar="PRESET|JSON",
        help="learn groups of the dataset's labels: a preset (docs/datasets.md) or a file",
    )
    add("--align", action=argparse.BooleanOptionalAction, help="align cases to the atlas, or not")
    add("--from", dest="like", type=_plan_of, metavar="RUN", help="plan for a start from this run's weights")
    add("--pretrain-on", nargs="+", metavar="DATASET", help="also learn from the images of these")


def _plan_of(run: str) -> "Plan":
    from medplan.commands.trained import read_plan

    return read_plan(Path(run))


def _whole_number(least: int) -> Callable[[str], int]:
    """Return what reads a whole number of at least so much; argparse names the flag where it is none."""

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"should be a whole number, {least} or more, found '{text}'")
        return int(text)

    return read


def part(text: str) -> tuple[int, int]:
    """Read which of how many parts, ``1/4`` to ``4/4``."""
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise argparse.ArgumentTypeError(f"should be 1/4, 2/4 and so on, found '{text}'")
    return int(number), int(count)


def _split(text: str) -> object:
    from medplan.data.folds_file import read_folds

    return read_folds(Path(text)) if text.endswith(".json") else text


def _label_groups(text: str) -> dict[str, tuple[int, ...]]:
    from medplan.plan.label_groups import read_label_groups

    return read_label_groups(text)
