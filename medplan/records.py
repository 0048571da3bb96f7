"""Frozen dataclasses to JSON and back: an unknown key or a wrong type is an error that names the key."""

import dataclasses
import json
import os
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from medplan.errors import MedplanError, PlanError, did_you_mean

__all__ = ["decode", "encode", "load_json", "read_json", "write_json", "write_text"]

Record = TypeVar("Record")


def encode(value: Any) -> Any:
    """Turn dataclasses, tuples and paths into what JSON knows."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: encode(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def decode(kind: type[Record], data: Any, *, where: str) -> Record:
    """Build a value of type `kind` from parsed JSON.

    Args:
        kind: a dataclass, or any type that a dataclass field may carry (str, int, float, bool, None, Path,
            Literal, tuple, dict, unions of these and further dataclasses).
        where: named in front of every error, usually the path of the file.

    Raises: PlanError with the dotted name of the key, what was expected and what was found.
    """
    result: Record = _decode(kind, data, where, "")
    return result


def read_json(kind: type[Record], path: Path) -> Record:
    """Read a record that `write_json` wrote.

    Raises: PlanError if it is missing, not JSON, or not such a record.
    """
    return decode(kind, load_json(path, error=PlanError), where=str(path))


def load_json(path: Path, *, error: type[MedplanError], hint: str = "") -> Any:
    """Parse a JSON file.

    Args:
        error: raised if there is no such file, or it is not JSON.
        hint: what to add where there is no such file.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise error(f"{path}: there is no such file{hint}.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as problem:
        raise error(f"{path}: not valid JSON ({problem}).") from None


def write_json(record: Any, path: Path) -> Path:
    """Write a record under a temporary name, then rename it, so that a reader never meets half a file."""
    return write_text(json.dumps(encode(record), indent=1, allow_nan=True) + "\n", path)


def write_text(text: str, path: Path) -> Path:
    """Write a text under a temporary name, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
    return path


def _decode(kind: Any, data: Any, where: str, key: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return data
    if origin is Literal:
        if data not in arguments:
            hint = did_you_mean(str(data), map(str, arguments))
            raise _mismatch(where, key, f"one of {', '.join(map(str, arguments))}", data, hint)
        return data
    if origin in (Union, types.UnionType):
        return _decode_union(arguments, data, where, key)
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(kind, data, where, key)
    if origin is tuple:
        return _decode_tuple(arguments, data, where, key)
    if origin in (dict, Mapping) or kind is dict:
        if not isinstance(data, Mapping):
            raise _mismatch(where, key, "an object", data)
        value_kind = arguments[1] if arguments else Any
        return {
            name: _decode(value_kind, item, where, f"{key}.{name}".lstrip(".")) for name, item in data.items()
        }
    return _decode_scalar(kind, data, where, key)


def _decode_union(arguments: tuple[Any, ...], data: Any, where: str, key: str) -> Any:
    if data is None and type(None) in arguments:
        return None
    candidates = [kind for kind in arguments if kind is not type(None)]
    if len(candidates) == 1:
        return _decode(candidates[0], data, where, key)
    for candidate in candidates:
        try:
            return _decode(candidate, data, where, key)
        except PlanError:
            continue
    raise _mismatch(
        where, key, " or ".join(getattr(kind, "__name__", str(kind)) for kind in candidates), data
    )


def _decode_dataclass(kind: Any, data: Any, where: str, key: str) -> Any:
    if not isinstance(data, Mapping):
        raise _mismatch(where, key, "an object", data)
    hints = get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}
    prefix = f"{key}." if key else ""
    for name in data:
        if name not in fields:
            raise PlanError(f"{where}: unknown key '{prefix}{name}'{did_you_mean(name, fields)}.")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in data:
            raise PlanError(f"{where}: the key '{prefix}{name}' is missing.")
    try:
        return kind(**{name: _decode(hints[name], item, where, prefix + name) for name, item in data.items()})
    except ValueError as error:
        raise PlanError(f"{where}: {f'in {key}: ' if key else ''}{error}") from None


def _decode_tuple(arguments: tuple[Any, ...], data: Any, where: str, key: str) -> Any:
    if not isinstance(data, (list, tuple)):
        raise _mismatch(where, key, "a list", data)
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return tuple(_decode(arguments[0], item, where, f"{key}[{i}]") for i, item in enumerate(data))
    if len(data) != len(arguments):
        raise _mismatch(where, key, f"a list of {len(arguments)}", data)
    return tuple(
        _decode(kind, item, where, f"{key}[{i}]")
        for i, (kind, item) in enumerate(zip(arguments, data, strict=True))
    )


def _decode_scalar(kind: Any, data: Any, where: str, key: str) -> Any:
    if kind is Path and isinstance(data, str):
        return Path(data)
    if kind is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    # Python counts True and False among the integers.
    if not isinstance(data, kind) or (isinstance(data, bool) and kind is not bool):
        raise _mismatch(where, key, _name(kind), data)
    return data


def _name(kind: Any) -> str:
    return {str: "a text", int: "an integer", float: "a number", bool: "true or false"}.get(kind, str(kind))


def _mismatch(where: str, key: str, expected: str, found: Any, hint: str = "") -> PlanError:
    shown = json.dumps(encode(found), default=str)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return PlanError(f"{where}: '{key}' should be {expected}, found {shown}{hint}.")
