from collections.abc import Callable
from typing import Any

import pytest

from medplan.errors import MethodError
from medplan.method import Proposal, Situation
from medplan.methods.supervised import METHOD
from medplan.plan.overrides import Overrides
from medplan.plan.recommend import format_table, recommend

Make = Callable[..., Any]
SMALL = Overrides(patch_size=(16, 16, 16))


def scored(method: Any, score: int, *, fits: bool = True) -> Any:
    class Scored(method):  # type: ignore[misc]
        @classmethod
        def propose(cls, situation: Situation) -> Proposal:
            return Proposal(fits=fits, score=score, reason=f"scores {score}")

    return Scored


def test_the_best_method_that_fits_comes_first(fingerprint: Make, toy: Make) -> None:
    methods = {
        "low": scored(toy(), 10),
        "high": scored(toy(), 90),
        "never": scored(toy(), 99, fits=False),
        "roles": scored(toy(roles=("unlabelled",)), 95),
    }
    rows = recommend([fingerprint()], methods, SMALL, 2**33)
    assert [row.method for row in rows] == ["high", "low", "never", "roles"]
    assert [row.plan is not None for row in rows] == [True, True, False, False]
    assert "--labelled" in rows[3].reason
    assert rows[0].plan is not None and rows[0].plan.method == "high"


def test_the_table_has_a_line_per_method_and_marks_the_first(fingerprint: Make, toy: Make) -> None:
    rows = recommend([fingerprint()], {"a": scored(toy(), 10), "b": scored(toy(), 90)}, SMALL, 2**33)
    head, first, second = format_table(rows).splitlines()
    assert head.split()[:5] == ["method", "fits", "dims", "patch", "batch"]
    assert first.startswith("*  b") and "16x16x16" in first and first.endswith("scores 90")
    assert second.startswith("   a")


def test_the_only_method_that_is_asked_for_says_why_it_cannot(fingerprint: Make, toy: Make) -> None:
    with pytest.raises(MethodError, match="'unlabelled'"):
        recommend([fingerprint()], {"one": toy(roles=("unlabelled",))}, SMALL, 2**33)


@pytest.mark.parametrize(
    ("facts", "score"),
    [
        ({}, 60),
        ({"domains": ("A", "B")}, 40),
        ({"num_unlabelled": 4}, 20),
    ],
)
def test_the_reference_is_best_where_there_is_nothing_but_labels(
    fingerprint: Make, facts: Any, score: int
) -> None:
    (row,) = recommend([fingerprint(**facts)], {"supervised": METHOD}, SMALL, 2**33)
    assert row.plan is not None and row.plan.score == score
