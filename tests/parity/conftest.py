"""References computed by the original networks, for every seed that is there.

Weights and inputs are functions of their names (``fill.py`` beside the references): neither is stored. The
folder is the one that ``MEDPLAN_PARITY`` names, by default ``../shared/parity`` beside the repository, with
``<model>.json`` with names, shapes and tolerances, and ``seed*/<model>.npz`` with the outputs.
"""

import importlib.util
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from medplan.machine import tune_allocator

FOLDER = Path(os.environ.get("MEDPLAN_PARITY", Path(__file__).parents[3] / "shared" / "parity"))


@dataclass(frozen=True, kw_only=True)
class Reference:
    """One model's references for one seed.

    Attributes:
        description: the parsed ``<model>.json``.
        arrays: outputs by name; ``<name>__stats`` = [sum, mean, std, min, max] of the full tensor.
        seed: of weights and inputs.
        formulas: the module ``fill.py``.
    """

    description: Mapping[str, Any]
    arrays: Mapping[str, npt.NDArray[np.generic]]
    seed: int
    formulas: ModuleType

    def fill(self, name: str, *shape: int) -> Tensor:
        """Return the value of the tensor that the original calls `name` (float64, integers stay)."""
        value = torch.from_numpy(np.asarray(self.formulas.fill(name, shape, self.seed)))
        return value.double() if value.is_floating_point() else value

    def image(self, name: str, *shape: int) -> Tensor:
        """Return the input called `name`: float64 in [0, 1)."""
        return torch.from_numpy(self.formulas.image(name, shape, self.seed)).double()

    def shapes(self, module: str | None = None, *, key: str = "state_dict") -> dict[str, tuple[int, ...]]:
        """Return state-dict names and shapes of one of the original's modules (None: of the only one)."""
        modules = self.description.get("modules")
        if modules:
            entries = modules[module or next(iter(modules))][key]
        else:
            entries = self.description[key]
        pairs = [(entry["name"], entry["shape"]) if isinstance(entry, dict) else entry for entry in entries]
        return {name: tuple(shape) for name, shape in pairs}

    def state(self, module: str | None = None, *, key: str = "state_dict") -> dict[str, Tensor]:
        """Return the original's filled state dict, with the stated exceptions."""
        modules = self.description.get("modules")
        exceptions = modules[module or next(iter(modules))].get("fill_exceptions", []) if modules else []
        state = {}
        for name, shape in self.shapes(module, key=key).items():
            state[name] = self.fill(name, *shape)
            for exception in exceptions:
                if name.endswith(exception["name_ends_with"]):
                    state[name] = state[name] * exception["multiply_fill_by"]
        return state

    def input(self, name: str) -> Tensor:
        """Return an input whose shape the description states."""
        return self.image(name, *self.description["inputs"][name]["shape"])

    def error(self, name: str, found: Tensor) -> tuple[float, float]:
        """Return max |found - stored| and the tolerance, on the stored part of the full tensor `found`."""
        facts = self.description["arrays"][name]
        stored = torch.from_numpy(np.asarray(self.arrays[name])).double()
        assert list(found.shape) == list(facts["full_shape"]), (
            f"{name}: {list(found.shape)} != {facts['full_shape']}"
        )
        part = found.detach().double()
        if facts["stride"] is not None:
            part = part[tuple(slice(None, None, step) for step in facts["stride"])]
        _, mean, std = (float(value) for value in self.arrays[f"{name}__stats"][:3])
        noise = facts.get("float32_noise", 0.0)
        relative = 1e-5 if "float32_noise" in facts else 1e-4
        return float((part - stored).abs().max()), 10 * noise + relative * max(std, abs(mean))

    def check(self, name: str, found: Tensor, *, tolerance: float | None = None) -> None:
        """Assert that `found` (the full tensor, before any stride) is what the original computed."""
        error, limit = self.error(name, found)
        limit = limit if tolerance is None else tolerance
        assert error <= limit, (
            f"{name} (seed {self.seed}): differs by {error:.3g}, at most {limit:.3g} expected"
        )


def _seeds() -> list[Any]:
    folders = sorted(FOLDER.glob("seed*"), key=lambda folder: int(folder.name.removeprefix("seed")))
    missing = pytest.mark.skip(
        reason=f"there are no references in {FOLDER}; name their folder in MEDPLAN_PARITY"
    )
    return [int(folder.name.removeprefix("seed")) for folder in folders] or [
        pytest.param(None, marks=missing)
    ]


@pytest.fixture(scope="session", autouse=True)
def allocator() -> None:
    tune_allocator()


@pytest.fixture(params=_seeds(), ids=lambda seed: f"seed{seed}")
def reference(request: pytest.FixtureRequest) -> Callable[[str], Reference]:
    """Return what finds a model's references; run once per seed, skipped where they are missing."""

    def load(model: str) -> Reference:
        description, arrays = FOLDER / f"{model}.json", FOLDER / f"seed{request.param}" / f"{model}.npz"
        for path in (description, arrays):
            if not path.is_file():
                pytest.skip(f"the reference {path} is not there")
        spec = importlib.util.spec_from_file_location("parity_fill", FOLDER / "fill.py")
        assert spec is not None and spec.loader is not None
        formulas = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(formulas)
        with np.load(arrays) as file:
            stored = dict(file)
        return Reference(
            description=json.loads(description.read_text()),
            arrays=stored,
            seed=request.param,
            formulas=formulas,
        )

    return load
