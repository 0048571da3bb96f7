"""A step touches one device: what every method does on a GPU, here on an emulated one."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from medplan import checkpoint, registry
from medplan.data.images import Geometry, Image
from medplan.method import Method
from medplan.methods.supervised import Supervised
from medplan.predict.folder import write_support
from medplan.predict.model import Model
from medplan.runtime import Runtime
from medplan.train.budget import lasting
from medplan.train.loop import train
from medplan.train.validate import make_validator
from tests.conformance.device import DEVICE, Far, emulated, waits
from tests.conformance.tiny import CPU, build, tiny_plan, tiny_store
from tests.conftest import make_phantom

over_methods = pytest.mark.parametrize("name", registry.names())

PER_UPDATE = "train/update.py"
"""Where the host may wait for the device in a step: at one line, for norm and losses of an update."""

OTHER_SETTINGS = {
    "two encoder passes per step": ("bijros", {"shared_passes": False, "diffeomorphic": True}),
    "drawn images": ("bijros", {"synthetic": 1.0, "recompute": True}),
    "steps apart": ("bijros", {"mode": "alternating", "compat": True}),
    "adapters": ("imedsam", {"from_nothing": False, "lora_rank": 4, "frequency_hidden": 4, "points": 99}),
    "released square": (
        "sdmessenger",
        {"paste_side": 4, "paste_back": 0.0, "warmup_steps": 0, "warmup": 0.0},
    ),
    "class weights": ("sdmessenger", {"class_weights": True, "threshold": 0.5, "memory": "batch"}),
    "released loss": ("hermes", {"compat": True, "recompute": True}),
    "one prototype": ("densemp", {"prototypes": "global", "mask_resize": "bilinear", "optimizer": "sgd"}),
    "all losses": ("supervised", {"batch_dice": True, "balance": 0.3, "optimizer": "sgd"}),
}
"""What changes a step: settings beside those of the tiny plan."""


def train_there(name: str, folder: Path, runtime: Runtime, config: Mapping[str, Any] | None = None) -> Method:
    plan = tiny_plan(name, checkpoint_every=10**6)
    plan = replace(plan, config={**plan.config, **(config or {})})
    store = tiny_store(plan, num_slices=2 if plan.dims == 2 else None)
    method, validate = build(plan), make_validator(plan, store, runtime=runtime)
    train(method, plan, store, folder, fold=0, runtime=runtime, validate=validate, workers=0)
    write_support([store[key] for role in ("atlas", "support") for key in store.role(role)], folder)
    return method


def assert_waits_once_per_update() -> None:
    in_steps = {place for place, in_step in waits if in_step}
    assert len(in_steps) == 1, f"the host waits for the device at {sorted(in_steps)}"
    assert min(in_steps).startswith(PER_UPDATE)


def predict_there(folder: Path, device: str) -> dict[str, Any]:
    """Return all that a model says of a phantom."""
    model = Model.load(folder, checkpoint="last", device=device, dataset="Phantom")
    depth, height, width = model.plan.patch_size
    phantom = make_phantom(9, shape=(max(depth, 2), height, width))
    geometry = Geometry(shape=phantom.image.shape, spacing_mm=phantom.spacing_mm)
    prepared = model.prepare(Image(array=phantom.image[None] / 3, geometry=geometry))
    probabilities = folder / "probabilities.npy"
    said: dict[str, Any] = {"label": model.predict_prepared(prepared, probabilities=probabilities)}
    said["probabilities"] = np.load(probabilities)
    with torch.no_grad(), model.runtime.autocast():
        member = model._members[0]
        for key, value in member.method.extras(prepared.case, member.support).items():
            said[key] = value if isinstance(value, float) else value.array
    return said


@over_methods
def test_training_resuming_and_predicting_on_the_device_give_what_the_host_gives(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medplan.runtime.cpu_has_bf16", lambda: False)
    here, there = tmp_path / "here", tmp_path / "there"
    train_there(name, here, CPU)
    with emulated():
        there.mkdir()
        (there / "STOP").touch()
        train_there(name, there, Runtime(device=DEVICE))
        method = train_there(name, there, Runtime(device=DEVICE))
        assert all(isinstance(tensor, Far) for tensor in method.state_dict().values())
        assert_waits_once_per_update()
        found = predict_there(there, "cuda:0")
    weights = [checkpoint.load(folder / "last.pt")["weights"] for folder in (here, there)]
    for key, tensor in weights[0].items():
        assert torch.allclose(tensor, weights[1][key], atol=1e-5, rtol=1e-4), key
    for key, value in predict_there(here, "cpu").items():
        assert np.allclose(value, found[key], atol=1e-4), key


@pytest.mark.slow
@pytest.mark.parametrize("setting", OTHER_SETTINGS)
def test_other_settings_do_not_make_the_host_wait_either(setting: str, tmp_path: Path) -> None:
    name, config = OTHER_SETTINGS[setting]
    with emulated():
        train_there(name, tmp_path, Runtime(device=DEVICE), config)
        assert_waits_once_per_update()


@pytest.mark.parametrize("name", ["bijros", "supervised"])
def test_scaled_losses_do_not_make_the_host_wait_either(name: str, tmp_path: Path) -> None:
    with emulated():
        train_there(name, tmp_path, Runtime(device=DEVICE, precision="fp16"))
        assert_waits_once_per_update()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) if name == "imedsam" else name for name in registry.names()],
)
def test_training_follows_the_rules_of_precision_of_the_device(
    name: str, precision: Literal["bf16", "fp16"], tmp_path: Path
) -> None:
    with emulated(autocast=True):
        method = train_there(name, tmp_path, Runtime(device=DEVICE, precision=precision))
        assert all(isinstance(p, Far) and p.dtype == torch.float32 for p in method.parameters())


def test_steps_are_timed_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medplan.train.budget.MOST_STEPS", 2)
    plan, runtime = tiny_plan("supervised"), Runtime(device=DEVICE)
    with emulated():
        found = lasting(60, plan, Supervised(plan), tiny_store(plan), runtime=runtime, workers=0)
    assert found.training.iterations > 0


def test_the_stand_in_refuses_what_a_device_refuses() -> None:
    with emulated() as device:
        far, near = torch.ones(3, device=device), torch.ones(3)
        assert far.device == device and (far + 1).cpu().numpy().sum() == 6
        with pytest.raises(RuntimeError, match="expected all tensors on cuda"):
            _ = far + near
        with pytest.raises(RuntimeError, match="tensor on the host"):
            _ = near[torch.zeros(1, dtype=torch.long, device=device)]
        with pytest.raises(TypeError, match="numpy"):
            far.numpy()
        with pytest.raises(RuntimeError, match="generator"):
            torch.rand(3, device=device, generator=torch.Generator())
        torch.rand(3, device=device, generator=torch.Generator(device))
