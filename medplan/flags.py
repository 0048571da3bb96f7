"""The flags of the verbs in groups, some of them for several verbs; named as the parameters are."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medplan.plan.schema import Plan

__all__ = [
    "NNUNET",
    "compare",
    "convert",
    "dataset",
    "datasets",
    "demo",
    "device",
    "evaluate",
    "everywhere",
    "export",
    "fingerprint",
    "install",
    "method",
    "model",
    "numbers",
    "planning",
    "precision",
    "predict",
    "report",
    "train",
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
    add("--name", help="of the plan (default: the dataset's, or those of several joined)")
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


def convert(parser: argparse.ArgumentParser) -> None:
    """Add what is converted to what."""
    add = parser.add_argument
    add("name", help="'scans' for a folder of your own, or one of those that 'medplan datasets' lists")
    add("--source", type=Path, required=True, help="folder of the scans or of the data set as published")
    add("--target", type=Path, help="raw dataset to write (default raw_data/<name>)")


def fingerprint(parser: argparse.ArgumentParser) -> None:
    """Add what else than measuring is done with a dataset."""
    add = parser.add_argument
    add("--check", action="store_true", help="report every problem of the files, write nothing")
    add("--repair", type=Path, metavar="FOLDER", help="write a corrected copy of the dataset there")


def train(parser: argparse.ArgumentParser) -> None:
    """Add what training is about, and how it goes."""
    add = parser.add_argument
    add("-m", "--method", help="method (default: the recommended one)")
    add("-f", "--fold", default="0", help="number, or 'all' to learn from every labelled case (default 0)")
    add("--run", default="default", help="name of this run (default 'default')")
    add("--minutes", type=float, metavar="N", help="as many iterations as take so long here, timed first")
    add("--restart", action="store_true", help="begin anew instead of resuming")
    add("--from", dest="start_from", type=Path, metavar="RUN", help="start from this run's weights")
    add("--compile", dest="compile_network", action="store_true", help="compile the networks")
    add(
        "--track",
        action="append",
        default=[],
        choices=["tensorboard", "mlflow", "wandb"],
        help="also log there",
    )


def predict(parser: argparse.ArgumentParser) -> None:
    """Add images and results, and the fields of `Options`."""
    add = parser.add_argument
    add("-i", "--input", type=Path, required=True, help="image, folder of images or DICOM folder")
    add(
        "-o", "--output", type=Path, required=True, help="folder for the results, or a file for a single scan"
    )
    add("--step", type=float, default=0.5, help="window step as a share of the patch (default 0.5)")
    add("--mirror", action="store_true", help="average over mirrored images")
    add("--part", type=_part, metavar="K/N", help="one of N parts of the cases, for N jobs at once: 1/4")
    add("--probabilities", action="store_true", help="also write class probabilities")
    add("--extras", action="store_true", help="also write flows and the like")
    add("--separate-tasks", action="store_true", help="also write a mask of each class")
    add("--no-postprocessing", dest="postprocessing", action="store_false", help="leave components")
    add("--prompts", type=Path, metavar="JSON", help="boxes per image, for methods that take them")
    add(
        "--prompt-mode",
        dest="prompt",
        choices=["auto", "none"],
        default="auto",
        help="without a box: find it in a first look, or take the whole image (default auto)",
    )
    add(
        "--output-size",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="of the label maps of pictures (default: each picture's own)",
    )
    add(
        "--support",
        action="append",
        default=[],
        metavar="CASE|IMAGE:LABEL",
        help="labelled example, a case or two files; repeatable",
    )
    add(
        "--anywhere",
        action="store_true",
        help="what the example shows can be anywhere in a scan, as a lesion can",
    )
    add("--tasks", dest="classes", nargs="+", default=[], metavar="CLASS", help="only these classes")
    add("--dataset-labels", metavar="NAME", help="whose classes, of several datasets")
    add("--modality", help="of the images, or 'unknown'; for methods that are told it")


def evaluate(parser: argparse.ArgumentParser) -> None:
    """Add what is compared, and how."""
    add = parser.add_argument
    add("-i", "--input", type=Path, required=True, help="folder of predictions")
    add("-r", "--reference", type=Path, required=True, help="folder of reference labels")
    add("-o", "--output", type=Path, help="folder for summary.json and metrics.csv (default input)")
    add("-d", "--dataset", help="dataset whose labels apply (default: as the predictions say)")
    add("--tolerance-mm", type=float, default=2.0, help="tolerance of the NSD in mm (default 2)")
    add("--no-surface", dest="surface", action="store_false", help="overlap metrics only")
    add("--allow-missing", action="store_true", help="references without prediction are left out")


def report(parser: argparse.ArgumentParser) -> None:
    """Add what is shown besides a run, and where."""
    add = parser.add_argument
    add(
        "-i",
        "--input",
        type=Path,
        help="folder of predictions, evaluated or not (default: the run's validation)",
    )
    add("--images", type=Path, help="folder of their images, for the overlays")
    add("-o", "--output", type=Path, help="file to write (default report.html in the run's folder)")


def compare(parser: argparse.ArgumentParser) -> None:
    """Add the runs that are compared."""
    add = parser.add_argument
    add(
        "runs",
        type=Path,
        nargs="+",
        metavar="RUN",
        help="run folder, or folder with a summary.json (ours or nnU-Net's); all are compared with the "
        "first, and runs that differ in the seed only count as one",
    )
    add("-d", "--dataset", help="of runs that were evaluated on several")
    add("--checkpoint", choices=["best", "last"], default="best", help="default best")
    add(
        "-o", "--output", type=Path, metavar="HTML", help="page to write, with every score in a CSV beside it"
    )


def export(parser: argparse.ArgumentParser) -> None:
    """Add the archive to write."""
    parser.add_argument("-o", "--output", type=Path, required=True, help="zip file to write")


def install(parser: argparse.ArgumentParser) -> None:
    """Add the archive to read."""
    parser.add_argument("archive", type=Path, help="zip file")


def demo(parser: argparse.ArgumentParser) -> None:
    """Add where the demonstration takes place, and how long it takes."""
    add = parser.add_argument
    add("--folder", type=Path, default=Path("medplan_demo"), help="workspace to make (default %(default)s)")
    add("-m", "--method", help="method (default: the recommended one)")
    add(
        "--iters",
        type=_whole_number(0),
        metavar="N",
        help="training iterations (default: for a few minutes)",
    )


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


def _part(text: str) -> tuple[int, int]:
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
