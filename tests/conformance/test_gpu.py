"""On a real GPU: every method trains with loader processes in lower precision, goes on, and predicts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medplan import checkpoint, registry
from medplan.data.images import Geometry, Image
from medplan.predict.model import Model
from medplan.runtime import Precision, Runtime
from medplan.train.loop import train
from medplan.train.validate import make_validator
from tests.conformance.tiny import build, tiny_plan, tiny_store
from tests.conftest import make_phantom

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
    # Python 3.12 warns of every fork beside threads; loader processes never touch CUDA.
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]


@pytest.mark.parametrize("precision", ["auto", "fp16"])
@pytest.mark.parametrize("name", registry.names())
def test_a_method_trains_resumes_and_predicts(name: str, precision: Precision, tmp_path: Path) -> None:
    runtime = Runtime.choose("cuda", precision=precision)
    plan = tiny_plan(name, validate_every=3)
    store = tiny_store(plan)

    def go() -> None:
        validate = make_validator(plan, store, runtime=runtime)
        train(build(plan), plan, store, tmp_path, fold=0, runtime=runtime, validate=validate, workers=2)

    (tmp_path / "STOP").touch()
    go()
    go()
    state = checkpoint.load(tmp_path / "last.pt")
    assert state["step"] == plan.training.iterations
    assert all(tensor.isfinite().all() for tensor in state["weights"].values() if tensor.is_floating_point())
    if not plan.roles(0).get("support") and not plan.roles(0).get("atlas"):
        assert_devices_agree(tmp_path, precision)


def assert_devices_agree(folder: Path, precision: Precision) -> None:
    labels: dict[str, Any] = {}
    for device in ("cpu", "cuda"):
        numbers: Precision = "fp32" if device == "cpu" else precision
        model = Model.load(folder, checkpoint="last", device=device, precision=numbers, dataset="Phantom")
        depth, height, width = model.plan.patch_size
        phantom = make_phantom(9, shape=(max(depth, 8), height, width))
        geometry = Geometry(shape=phantom.image.shape, spacing_mm=phantom.spacing_mm)
        labels[device] = model.predict_image(Image(array=phantom.image[None] / 3, geometry=geometry))
    assert np.mean(labels["cpu"] == labels["cuda"]) > 0.95, "rounding changes a few voxels, not many"
