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

    def verb(
        name: str, module: str, summary: str, *groups: Callable[[argparse.ArgumentParser], None]
    ) -> None:
        added = verbs.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        for group in (*groups, flags.everywhere):
            group(added)
        added.set_defaults(run_verb=_lazy(module, name))

    verb(
        "convert", "data", "Make a raw dataset of your own scans or of a public data set.",
        flags.convert, flags.workspace,
    )  # fmt: skip
    verb("datasets", "data", "List the converters and the datasets of the workspace.", flags.workspace)
    verb(
        "fingerprint", "data", "Measure a dataset and check it.",
        flags.datasets, flags.fingerprint, flags.workers, flags.workspace,
    )  # fmt: skip
    verb(
        "plan", "planning", "Decide everything for one method or for all that fit.",
        flags.datasets, flags.method, flags.planning,
    )  # fmt: skip
    verb(
        "preprocess", "planning", "Prepare the cases as the plans say.",
        flags.datasets, flags.method, flags.workers, flags.workspace,
    )  # fmt: skip
    verb(
        "plan_and_preprocess", "planning", "fingerprint, plan and preprocess.",
        flags.datasets, flags.method, flags.planning, flags.workers,
    )  # fmt: skip
    verb("methods", "planning", "List the methods.")
    verb(
        "train", "training", "Train a method.",
        flags.dataset, flags.train, flags.numbers, flags.workers, flags.device, flags.precision,
        flags.workspace,
    )  # fmt: skip
    verb(
        "predict", "prediction", "Segment images.",
        flags.predict, flags.model, flags.device, flags.precision, flags.workspace,
    )  # fmt: skip
    verb(
        "evaluate", "evaluation", "Compare predictions with references.",
        flags.evaluate, flags.workers, flags.workspace,
    )  # fmt: skip
    verb(
        "report", "evaluation", "Write one HTML page about a run, or about predictions.",
        flags.report, flags.model, flags.workspace,
    )  # fmt: skip
    verb("compare", "comparison", "Set the scores of several runs side by side, case by case.", flags.compare)
    verb(
        "export", "prediction", "Pack a trained model into one zip.",
        flags.export, flags.model, flags.workspace,
    )  # fmt: skip
    verb("install", "prediction", "Unpack a model that 'export' packed.", flags.install, flags.workspace)
    verb("demo", "demo", "Run everything on a small brain dataset.", flags.demo, flags.device)
    verb(
        "info", "info", "Show versions, devices, free memory and disk, and where weights are looked for.",
        flags.workspace,
    )  # fmt: skip
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
