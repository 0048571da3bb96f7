"""Which method to take: one row per method, the recommended one first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from medplan.errors import MethodError, PlanError
from medplan.plan.overrides import Overrides
from medplan.plan.planner import decide
from medplan.plan.schema import Plan

if TYPE_CHECKING:
    from medplan.method import Method
    from medplan.plan.fingerprint import Fingerprint

__all__ = ["GPU_FLOPS", "Row", "format_table", "recommend"]

GPU_FLOPS = 4e13
"""Operations per second that a recent data-centre GPU sustains in bfloat16 on such networks, about an eighth
of its peak. Times in the table are meant to compare methods, not to be booked."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One method's line of the table.

    Attributes:
        reason: for using it; of a method that does not fit, why not.
        plan: None if it does not fit.
        seconds: predicted time of training on a GPU, or None.
    """

    method: str
    reason: str
    plan: Plan | None = None
    seconds: float | None = None


def recommend(
    fingerprints: Sequence["Fingerprint"],
    methods: Mapping[str, "type[Method]"],
    overrides: Overrides,
    gpu_memory_bytes: int | None = None,
) -> tuple[Row, ...]:
    """Plan every method that fits, and rank them: fitting ones first, by score, then by name.

    Raises: MethodError or PlanError if there is one method, and it does not fit.
    """
    rows = []
    for name, method_class in methods.items():
        try:
            plan, footprint = decide(fingerprints, name, method_class, overrides, gpu_memory_bytes)
        except (MethodError, PlanError) as error:
            if len(methods) == 1:
                raise
            rows.append(Row(method=name, reason=str(error).removeprefix(f"{name}: ").removesuffix(".")))
            continue
        seconds = plan.training.iterations * footprint.flops / GPU_FLOPS
        rows.append(Row(method=name, reason=plan.reasons["method"], plan=plan, seconds=seconds or None))
    return tuple(sorted(rows, key=lambda row: (1 if row.plan is None else -row.plan.score, row.method)))


def format_table(rows: Sequence[Row]) -> str:
    """Return the rows as an aligned text table; the recommended method is marked with ``*``."""
    head = ("", "method", "fits", "dims", "patch", "batch", "encoder", "GPU memory", "GPU time", "why")
    lines = [head, *(_cells(row, is_first=number == 0) for number, row in enumerate(rows))]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head) - 1)] + [0]
    padded = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
    return "\n".join("  ".join(cells).rstrip() for cells in padded)


def _cells(row: Row, *, is_first: bool) -> tuple[str, ...]:
    if row.plan is None:
        return ("", row.method, "no", "", "", "", "", "", "", row.reason)
    plan = row.plan
    memory = "" if plan.predicted_gpu_bytes is None else f"{plan.predicted_gpu_bytes / 2**30:.1f} GB"
    return (
        "*" if is_first else "",
        row.method,
        "yes",
        str(plan.dims),
        "x".join(map(str, plan.patch_size if plan.dims == 3 else plan.patch_size[1:])),
        str(plan.training.batch_size),
        plan.encoder,
        memory,
        "" if row.seconds is None else _duration(row.seconds),
        row.reason,
    )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
