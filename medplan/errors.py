"""The errors a user can meet.

    MedplanError
    |-- UsageError        the command line or the workspace
    |-- DataError         an image, a label or a dataset.json
    |-- PlanError         a fingerprint or a plan
    |-- MethodError       a method cannot do what is asked of it
    `-- CheckpointError   a checkpoint or a weight file

Every message is one clear sentence that says what, where, expected against found, and what to do. The command
line prints it without a traceback and exits with status 2.
"""

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = [
    "CheckpointError",
    "DataError",
    "MedplanError",
    "MethodError",
    "PlanError",
    "UsageError",
    "did_you_mean",
]


class MedplanError(Exception):
    """Something the user can put right; the message says how."""


class UsageError(MedplanError):
    """The command line or the workspace is not as it should be."""


class DataError(MedplanError):
    """An image, a label or a dataset description is not as it should be."""


class PlanError(MedplanError):
    """A fingerprint or a plan is not as it should be."""


class MethodError(MedplanError):
    """A method cannot work on what it was given."""


class CheckpointError(MedplanError):
    """A checkpoint or a weight file cannot be used."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the known word nearest to `word`, or an empty string."""
    bare = {name.lstrip("-"): name for name in known}  # dashes would make any two flags alike
    matches = get_close_matches(word.lstrip("-"), list(bare), n=1)
    return f" (did you mean '{bare[matches[0]]}'?)" if matches else ""
