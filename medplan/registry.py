"""Methods by name: a file ``medplan/methods/<name>.py``, or an entry point of another package.

A method's module says ``METHOD = <class>``; an entry point in the group ``medplan.methods`` names the class
itself. Listing the names imports nothing; finding a method imports it, and torch with it.
"""

import importlib
import pkgutil
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING

import medplan.methods
from medplan.errors import MethodError, did_you_mean

if TYPE_CHECKING:
    from medplan.method import Method

__all__ = ["find", "names"]

GROUP = "medplan.methods"


def names() -> tuple[str, ...]:
    """Return the names of all methods that are installed, sorted."""
    return tuple(sorted({*_own_names(), *_foreign()}))


def find(name: str) -> "type[Method]":
    """Return the class of a method.

    Raises: MethodError that lists the methods, with the closest match, if there is none of that name; or if
        what is found under the name is not a `Method`.
    """
    if name in _own_names():
        where = f"medplan/methods/{name}.py"
        found = getattr(importlib.import_module(f"medplan.methods.{name}"), "METHOD", None)
    elif name in (foreign := _foreign()):
        where = f"entry point '{name}' = '{foreign[name].value}'"
        found = foreign[name].load()
    else:
        known = names()
        raise MethodError(
            f"there is no method '{name}'{did_you_mean(name, known)}. The methods are: {', '.join(known)}."
        )
    from medplan.method import Method

    if not (isinstance(found, type) and issubclass(found, Method)):
        raise MethodError(f"{where}: should give a subclass of medplan.method.Method, found {found!r}.")
    return found


def _own_names() -> tuple[str, ...]:
    modules = pkgutil.iter_modules(medplan.methods.__path__)
    return tuple(module.name for module in modules if not module.name.startswith("_"))


def _foreign() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}
