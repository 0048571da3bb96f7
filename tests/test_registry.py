import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from medplan import registry
from medplan.errors import MethodError
from medplan.method import Method


def test_every_method_that_is_listed_is_found() -> None:
    assert "supervised" in registry.names()
    for name in registry.names():
        assert issubclass(registry.find(name), Method)


def test_an_unknown_method_is_answered_with_the_nearest_and_the_list() -> None:
    with pytest.raises(
        MethodError, match=r"no method 'superwised' \(did you mean 'supervised'\?\).*The methods are"
    ):
        registry.find("superwised")


def test_listing_the_methods_imports_no_torch() -> None:
    code = "import sys; from medplan import registry; registry.names(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_methods_of_other_packages_come_by_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    def points(*, group: str) -> list[Any]:
        own = registry.find.__globals__["importlib"].import_module("medplan.methods.supervised").METHOD
        return [
            SimpleNamespace(name="elsewhere", value="package:Class", load=lambda: own),
            SimpleNamespace(name="broken", value="package:thing", load=lambda: 3),
        ]

    monkeypatch.setattr(registry, "entry_points", points)
    assert {"elsewhere", "supervised"} <= set(registry.names())
    assert issubclass(registry.find("elsewhere"), Method)
    with pytest.raises(MethodError, match=r"'broken' = 'package:thing'.*subclass"):
        registry.find("broken")
