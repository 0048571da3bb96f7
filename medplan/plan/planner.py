"""From facts to decisions: fingerprints, what a method needs, and the user's overrides become a plan.

Everything here is a pure function: nothing is read or written, equal input gives an equal plan.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from medplan.plan.overrides import Overrides
from medplan.plan.schema import Plan

if TYPE_CHECKING:
    from medplan.method import Method, Situation

__all__ = ["Overrides", "make_plan", "situation"]


def situation(fingerprints: Sequence[Any], overrides: Overrides | None = None) -> "Situation":
    """Sum up what decides which method fits."""
    raise NotImplementedError


def make_plan(
    fingerprints: Sequence[Any],
    method: str,
    method_class: "type[Method]",
    overrides: Overrides,
    gpu_memory_bytes: int | None = None,
) -> Plan:
    """Decide everything for one method on one or several datasets."""
    raise NotImplementedError
