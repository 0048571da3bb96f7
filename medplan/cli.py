"""The command line: what each verb takes, and the one place where errors become exit codes.

A verb is a function in ``medplan/commands`` whose parameters have the names of its flags; flags that several
verbs share come as one record. Nothing heavy is imported before a verb runs, so that ``medplan --help``
answers at once.
"""

import argparse
import importlib
import inspect
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from itertools import takewhile
from pathlib import Path
from typing import Any, NoReturn

from medplan import __version__, flags
from medplan.commands.trained import Trained
from medplan.errors import MedplanError, UsageError, did_you_mean

__all__ = ["build_parser", "main"]

DESCRIPTION = """\
Self-configuring medical image segmentation when labels are scarce.

  medplan demo                                       see it work, in a few minutes
  medplan convert scans --source DIR --target raw_data/Liver     a dataset of your own files
  medplan plan_and_preprocess -d Liver               look at the data, decide, prepare
  medplan train -d Liver                             train the recommended method
  medplan predict -i in/ -o out/                     segment new images
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; return the exit status: 0 done, 2 the user can put it right, 130 interrupted."""
    parser = build_parser()
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given:
        parser.print_help(sys.stderr)
        return 2
    try:
        options = vars(_parse(parser, given))
        run: Callable[..., None] = options.pop("run_verb")
        logging.basicConfig(
            level=logging.DEBUG if options.pop("verbose") else logging.INFO,
            format="%(message)s",
            stream=sys.stderr,
        )
        logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it tells of its caches
        run(**options)
        return 0
    except MedplanError as error:
        print(f"medplan: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("medplan: interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 141
    except OSError as error:  # a full disk, a folder that may not be written to, a file in a folder's place
        logging.getLogger(__name__).debug("Where it happened:", exc_info=True)
        print(f"medplan: error: {error.filename or 'system'}: {error.strerror or error}.", file=sys.stderr)
        return 2


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message[0].upper()}{message[1:]}. See '{self.prog} --help'.")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with every verb and flag."""
    parser = _Parser(
        prog="medplan",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"medplan {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", dest="verb", required=True)

    def verb(name: str, module: str, summary: str, *groups: Callable[[argparse.ArgumentParser], None]) -> Any:
        added = verbs.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        for group in (*groups, flags.everywhere):
            group(added)
        added.set_defaults(run_verb=_lazy(module, name))
        return added

    convert = verb(
        "convert",
        "data",
        "Make a raw dataset of your own scans or of a public data set.",
        flags.workspace,
    )
    convert.add_argument(
        "name", help="'scans' for a folder of your own, or one of those that 'medplan datasets' lists"
    )
    convert.add_argument(
        "--source", type=Path, required=True, help="folder of the scans or of the data set as published"
    )
    convert.add_argument("--target", type=Path, help="raw dataset to write (default raw_data/<name>)")

    verb("datasets", "data", "List the converters and the datasets of the workspace.", flags.workspace)

    fingerprint = verb(
        "fingerprint",
        "data",
        "Measure a dataset and check it.",
        flags.datasets,
        flags.workers,
        flags.workspace,
    )
    fingerprint.add_argument(
        "--check", action="store_true", help="report every problem of the files, write nothing"
    )
    fingerprint.add_argument(
        "--repair", type=Path, metavar="FOLDER", help="write a corrected copy of the dataset there"
    )

    verb(
        "plan",
        "planning",
        "Decide everything for one method or for all that fit.",
        flags.datasets,
        flags.method,
        flags.planning,
    )
    verb(
        "preprocess",
        "planning",
        "Prepare the cases as the plans say.",
        flags.datasets,
        flags.method,
        flags.workers,
        flags.workspace,
    )
    verb(
        "plan_and_preprocess", "planning", "fingerprint, plan and preprocess.",
        flags.datasets, flags.method, flags.planning, flags.workers,
    )  # fmt: skip
    verb("methods", "planning", "List the methods.")

    train = verb(
        "train", "training", "Train a method.",
        flags.dataset, flags.workers, flags.device, flags.precision, flags.workspace,
    )  # fmt: skip
    train.add_argument("-m", "--method", help="method (default: the recommended one)")
    train.add_argument(
        "-f", "--fold", default="0", help="number, or 'all' to learn from every labelled case (default 0)"
    )
    train.add_argument("--run", default="default", help="name of this run (default 'default')")
    train.add_argument(
        "--minutes", type=float, metavar="N", help="as many iterations as take so long here, timed first"
    )
    flags.numbers(train)
    train.add_argument("--restart", action="store_true", help="begin anew instead of resuming")
    train.add_argument(
        "--from", dest="start_from", type=Path, metavar="RUN", help="start from this run's weights"
    )
    train.add_argument("--compile", dest="compile_network", action="store_true", help="compile the networks")
    train.add_argument(
        "--track",
        action="append",
        default=[],
        choices=["tensorboard", "mlflow", "wandb"],
        help="also log there",
    )

    predict = verb("predict", "prediction", "Segment images.", flags.device, flags.precision, flags.workspace)
    predict.add_argument(
        "-i", "--input", type=Path, required=True, help="image, folder of images or DICOM folder"
    )
    predict.add_argument(
        "-o", "--output", type=Path, required=True, help="folder for the results, or a file for a single scan"
    )
    flags.model(predict)
    predict.add_argument(
        "--step", type=float, default=0.5, help="window step as a share of the patch (default 0.5)"
    )
    predict.add_argument("--mirror", action="store_true", help="average over mirrored images")
    predict.add_argument(
        "--part", type=flags.part, metavar="K/N", help="one of N parts of the cases, for N jobs at once: 1/4"
    )
    predict.add_argument("--probabilities", action="store_true", help="also write class probabilities")
    predict.add_argument("--extras", action="store_true", help="also write flows and the like")
    predict.add_argument("--separate-tasks", action="store_true", help="also write a mask of each class")
    predict.add_argument(
        "--no-postprocessing", dest="postprocessing", action="store_false", help="leave components"
    )
    predict.add_argument(
        "--prompts", type=Path, metavar="JSON", help="boxes per image, for methods that take them"
    )
    predict.add_argument(
        "--prompt-mode",
        dest="prompt",
        choices=["auto", "none"],
        default="auto",
        help="without a box: find it in a first look, or take the whole image (default auto)",
    )
    predict.add_argument(
        "--output-size",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="of the label maps of pictures (default: each picture's own)",
    )
    predict.add_argument(
        "--support",
        action="append",
        default=[],
        metavar="CASE|IMAGE:LABEL",
        help="labelled example, a case or two files; repeatable",
    )
    predict.add_argument(
        "--anywhere",
        action="store_true",
        help="what the example shows can be anywhere in a scan, as a lesion can",
    )
    predict.add_argument(
        "--tasks", dest="classes", nargs="+", default=[], metavar="CLASS", help="only these classes"
    )
    predict.add_argument("--dataset-labels", metavar="NAME", help="whose classes, of several datasets")
    predict.add_argument("--modality", help="of the images, or 'unknown'; for methods that are told it")

    evaluate = verb(
        "evaluate", "evaluation", "Compare predictions with references.", flags.workers, flags.workspace
    )
    evaluate.add_argument("-i", "--input", type=Path, required=True, help="folder of predictions")
    evaluate.add_argument("-r", "--reference", type=Path, required=True, help="folder of reference labels")
    evaluate.add_argument(
        "-o", "--output", type=Path, help="folder for summary.json and metrics.csv (default input)"
    )
    evaluate.add_argument(
        "-d", "--dataset", help="dataset whose labels apply (default: as the predictions say)"
    )
    evaluate.add_argument(
        "--tolerance-mm", type=float, default=2.0, help="tolerance of the NSD in mm (default 2)"
    )
    evaluate.add_argument("--no-surface", dest="surface", action="store_false", help="overlap metrics only")
    evaluate.add_argument(
        "--allow-missing", action="store_true", help="references without prediction are left out"
    )

    report = verb(
        "report", "evaluation", "Write one HTML page about a run, or about predictions.", flags.workspace
    )
    flags.model(report)
    report.add_argument(
        "-i",
        "--input",
        type=Path,
        help="folder of predictions, evaluated or not (default: the run's validation)",
    )
    report.add_argument("--images", type=Path, help="folder of their images, for the overlays")
    report.add_argument(
        "-o", "--output", type=Path, help="file to write (default report.html in the run's folder)"
    )

    compare = verb("compare", "comparison", "Set the scores of several runs side by side, case by case.")
    compare.add_argument(
        "runs",
        type=Path,
        nargs="+",
        metavar="RUN",
        help="run folder, or folder with a summary.json (ours or nnU-Net's); all are compared with the "
        "first, and runs that differ in the seed only count as one",
    )
    compare.add_argument("-d", "--dataset", help="of runs that were evaluated on several")
    compare.add_argument("--checkpoint", choices=["best", "last"], default="best", help="default best")
    compare.add_argument(
        "-o", "--output", type=Path, metavar="HTML", help="page to write, with every score in a CSV beside it"
    )

    export = verb("export", "prediction", "Pack a trained model into one zip.", flags.workspace)
    flags.model(export)
    export.add_argument("-o", "--output", type=Path, required=True, help="zip file to write")

    install = verb("install", "prediction", "Unpack a model that 'export' packed.", flags.workspace)
    install.add_argument("archive", type=Path, help="zip file")

    demo = verb("demo", "demo", "Run everything on a small brain dataset.", flags.device)
    demo.add_argument(
        "--folder", type=Path, default=Path("medplan_demo"), help="workspace to make (default %(default)s)"
    )
    demo.add_argument("-m", "--method", help="method (default: the recommended one)")
    demo.add_argument(
        "--iters", type=int, metavar="N", help="training iterations (default: for a few minutes)"
    )

    verb(
        "info",
        "info",
        "Show versions, devices, free memory and disk, and where weights are looked for.",
        flags.workspace,
    )
    return parser


def _parse(parser: argparse.ArgumentParser, arguments: list[str]) -> argparse.Namespace:
    verbs = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction)).choices
    name = arguments[0].replace("-", "_") if not arguments[0].startswith("-") else None
    if name is None and arguments[0] not in parser._option_string_actions:
        raise UsageError(f"The verb comes first: medplan VERB {arguments[0]} .... See 'medplan --help'.")
    if name is not None and name not in verbs:
        raise UsageError(
            f"There is no verb '{arguments[0]}'{did_you_mean(name, verbs)}. See 'medplan --help'."
        )
    if name is not None:
        arguments = [name, *(_canonical(word, verbs[name], verbs) for word in arguments[1:])]
        surplus = list(takewhile(lambda word: not word.startswith("-"), arguments[1:]))
    if name is None or any(not action.option_strings for action in verbs[name]._actions) or not surplus:
        options, surplus = parser.parse_known_args(arguments)
    if surplus:
        takes = f"'medplan {name}' takes flags only" if name != "convert" else "one name is enough"
        raise UsageError(f"What is '{' '.join(surplus)}'? {takes}; see 'medplan {name} --help'.")
    return options


def _canonical(
    word: str, parser: argparse.ArgumentParser, verbs: Mapping[str, argparse.ArgumentParser]
) -> str:
    """Accept ``-flag`` and ``--some_flag``, and refuse what is no flag, naming the nearest one.

    Left to argparse, ``-device`` would be read as ``-d evice``.
    """
    if not word.startswith("-") or word in ("-", "--") or _is_number(word):
        return word
    known = parser._option_string_actions
    flag, equals, value = word.partition("=")
    if flag in known:
        return word
    spelled = "--" + flag.lstrip("-").replace("_", "-")
    if spelled in known:
        return spelled + equals + value
    long = [option for option in known if option.startswith("--")]
    others = [f"'{other.prog}'" for other in verbs.values() if spelled in other._option_string_actions]
    hint = f", a flag of {' and '.join(others)}" if others else did_you_mean(spelled, long)
    meant = flags.NNUNET.get(flag) or flags.NNUNET.get(spelled.lstrip("-"))
    if meant is not None:
        hint = f", which is nnU-Net's: {meant}"
    raise UsageError(f"'{parser.prog}' has no flag '{flag}'{hint}. See '{parser.prog} --help'.")


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _lazy(module: str, function: str) -> Callable[..., None]:
    """Return the verb's function, imported when it is run, which is given its flags as records."""

    def run(*, verb: str, **options: Any) -> None:
        command = getattr(importlib.import_module(f"medplan.commands.{module}"), function)
        parameters = inspect.signature(command).parameters
        if "overrides" in parameters:
            options = _gather_overrides(options)
        if "trained" in parameters:
            options = _gather(options, "trained", Trained)
        if "options" in parameters:
            from medplan.predict.options import Options

            options = _gather(options, "options", Options)
        command(**options)

    return run


def _gather_overrides(options: dict[str, Any]) -> dict[str, Any]:
    from medplan.plan.overrides import Overrides, parse_setting

    settings = dict(map(parse_setting, options.get("settings") or []))
    return _gather({**options, "settings": settings}, "overrides", Overrides)


def _gather(options: dict[str, Any], name: str, record: type) -> dict[str, Any]:
    """Move the options that are fields of a record into one; what was not given has the record's default."""
    known = {field.name for field in fields(record)}
    given = {key: value for key, value in options.items() if key in known and value is not None}
    chosen = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
    return {**{key: options[key] for key in options.keys() - known}, name: record(**chosen)}


if __name__ == "__main__":
    sys.exit(main())
