"""What Bi-JROS predicts beside labels: the atlas, moved, and what tells how well it was."""

import numpy as np
import pytest
import torch

from medplan.errors import MethodError
from medplan.samples.cases import Case
from tests.conftest import make_phantom
from tests.methods.bijros_case import tiny_bijros

SIDE = 16


def case(key: str, seed: int, shape: tuple[int, int, int] = (SIDE, SIDE, SIDE)) -> Case:
    phantom = make_phantom(seed, shape=shape, spacing_mm=(1.0, 1.0, 1.0))
    codes = phantom.label.astype(np.int16)
    return Case(key=key, pixels=phantom.image[None] / 6, codes=codes, spacing_mm=(1.0, 1.0, 1.0))


@torch.no_grad()
def test_registration_predicts_the_atlas_where_it_lies() -> None:
    method = tiny_bijros(output="reg").eval()
    atlas, other = case("Brains/a", 0), case("Brains/v", 1, (12, 14, 16))
    predictor = method.predictor(other, [atlas])
    corner = (-2, -1, 0)
    patch = torch.from_numpy(other.image(corner, (14, 15, 16)))[None]
    # An untrained network moves nothing, so the atlas lies centre on centre.
    codes = torch.from_numpy(atlas.codes).long()
    assert torch.equal(predictor(patch, [corner]).argmax(1)[0], codes)
    assert torch.equal(predictor(patch.flip(2, 4), [corner], (0, 2)).argmax(1)[0], codes.flip(0, 2))
    with pytest.raises(MethodError, match="needs the atlas"):
        method.predictor(other, [])


@torch.no_grad()
def test_extras_are_cut_to_the_case_and_say_how_good_the_field_is() -> None:
    method = tiny_bijros().eval()
    atlas, other = case("Brains/a", 0), case("Brains/v", 1, (12, 14, 16))
    found = method.extras(other, [atlas])
    assert found["registered"].array.shape == (3, 12, 14, 16)  # type: ignore[union-attr]
    assert found["flow"].array.shape == (3, 12, 14, 16)  # type: ignore[union-attr]
    assert found["atlas"].array.shape == (1, 12, 14, 16)  # type: ignore[union-attr]
    assert found["folding_percent"] == 0 and found["lncc_after"] == pytest.approx(
        found["lncc_before"], abs=1e-3
    )
    with pytest.raises(MethodError, match="larger than the patch"):
        method.extras(case("Brains/w", 1, (20, 16, 16)), [atlas])
