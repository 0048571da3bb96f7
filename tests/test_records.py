"""Records: JSON and back is the identity, and every slip in a file is named."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from medplan.errors import PlanError
from medplan.records import decode, encode, read_json, write_json


@dataclass(frozen=True, kw_only=True)
class Inner:
    sizes: tuple[int, ...]
    pair: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if any(size < 0 for size in self.sizes):
            raise ValueError("'sizes' should not be negative")


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str
    kind: Literal["a", "b"]
    inner: Inner
    table: dict[str, tuple[str, ...]]
    path: Path = Path("x")
    rate: float = 1.0


RECORD = Outer(
    name="n", kind="b", inner=Inner(sizes=(1, 2), pair=(0.5, 2.0)), table={"k": ("v",)}, path=Path("a/b")
)


def test_writing_and_reading_is_the_identity(tmp_path: Path) -> None:
    assert read_json(Outer, write_json(RECORD, tmp_path / "sub" / "r.json")) == RECORD


def test_writing_leaves_nothing_else_behind(tmp_path: Path) -> None:
    write_json(RECORD, tmp_path / "r.json")
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]


def test_an_integer_serves_as_a_number() -> None:
    assert decode(Outer, {**encode(RECORD), "rate": 2}, where="f").rate == 2.0


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        ({"nmae": "x"}, "unknown key 'nmae' (did you mean 'name'?)"),
        ({"kind": "c"}, "'kind' should be one of a, b"),
        ({"name": 3}, "'name' should be a text, found 3"),
        ({"rate": True}, "'rate' should be a number"),
        ({"inner": {"sizes": [1, "2"]}}, "'inner.sizes[1]' should be an integer"),
        ({"inner": {"sizes": [1], "pair": [1.0]}}, "'inner.pair' should be a list of 2"),
        ({"inner": {}}, "the key 'inner.sizes' is missing"),
        ({"inner": {"sizes": [-1]}}, "in inner: 'sizes' should not be negative"),
        ({"table": {"k": "v"}}, "'table.k' should be a list"),
    ],
)
def test_a_slip_is_named_with_its_key(change: dict[str, object], hint: str) -> None:
    with pytest.raises(PlanError) as error:
        decode(Outer, {**encode(RECORD), **change}, where="plans/x.json")
    assert "plans/x.json" in str(error.value)
    assert hint in str(error.value)


@pytest.mark.parametrize(
    ("text", "hint"), [(None, "no such file"), ("{", "not valid JSON"), ("\xff", "not valid")]
)
def test_an_unreadable_file_is_one_sentence(tmp_path: Path, text: str | None, hint: str) -> None:
    path = tmp_path / "r.json"
    if text is not None:
        path.write_bytes(text.encode("latin1"))
    with pytest.raises(PlanError, match=hint):
        read_json(Outer, path)
