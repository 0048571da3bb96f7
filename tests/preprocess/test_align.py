import dataclasses

import numpy as np
import pytest
import torch
from torch.nn.functional import one_hot

from medplan.data.images import Geometry, Image
from medplan.errors import DataError
from medplan.plan.schema import Grid
from medplan.preprocess.atlas import Atlas
from medplan.preprocess.prepare import make_atlas, prepare
from medplan.preprocess.restore import LabelRestorer

GRID = Grid(spacing_mm=(2.0, 2.0, 2.0), align_to="atlas")


def head(*, shift_mm=(0.0, 0.0, 0.0), turn=0.0, scale=1.0, origin=(0.0, 0.0, 0.0)):
    """Return an ellipsoid with two off-centre organs, turned about z, and its label."""
    shape = (44, 52, 48)
    points = np.stack(np.meshgrid(*[np.arange(n) * 2.0 for n in shape], indexing="ij"), axis=-1)
    points = (points - np.array(shape) - np.array(shift_mm)) / scale
    cosine, sine = np.cos(turn), np.sin(turn)
    z, y, x = (
        points[..., 0],
        cosine * points[..., 1] - sine * points[..., 2],
        sine * points[..., 1] + cosine * points[..., 2],
    )
    body = (z / 32) ** 2 + (y / 38) ** 2 + (x / 28) ** 2 < 1
    first = (z - 6) ** 2 + (y - 14) ** 2 + (x - 8) ** 2 < 9**2
    second = (z + 8) ** 2 + (y + 12) ** 2 + (x + 6) ** 2 < 8**2
    image = np.where(second, 160, np.where(first, 40, np.where(body, 100, 0))).astype(np.float32)
    geometry = Geometry(shape=shape, spacing_mm=(2.0, 2.0, 2.0), origin_mm=origin)
    return Image(array=image[None], geometry=geometry), np.where(second, 2, np.where(first, 1, 0))


def dice(one, other):
    return min(
        2 * ((one == c) & (other == c)).sum() / ((one == c).sum() + (other == c).sum()) for c in (1, 2)
    )


@pytest.mark.slow
def test_cases_meet_on_the_atlas_and_come_back(make_plan, tmp_path):
    plan = make_plan()
    image, label = head()
    make_atlas(image, plan, GRID).save(tmp_path / "atlas.nrrd")
    atlas = Atlas.load(tmp_path / "atlas.nrrd")
    reference, _ = prepare(image, plan, GRID, label=label, key="a/atlas")
    moving, moving_label = head(shift_mm=(4.0, -6.0, 3.0), turn=0.15, scale=1.08, origin=(250.0, -90.0, 33.0))
    case, restoration = prepare(moving, plan, GRID, label=moving_label, key="a/b", atlas=atlas)
    assert case.shape == reference.shape
    assert dice(case.codes, reference.codes) > 0.85
    again, repeated = prepare(moving, plan, GRID, label=moving_label, key="a/b", atlas=atlas)
    assert repeated == restoration
    assert np.array_equal(again.pixels, case.pixels)
    restorer = LabelRestorer(restoration, plan.labels, probabilities=True)
    logits = 9 * one_hot(torch.from_numpy(case.codes.astype(np.int64)), 3).permute(3, 0, 1, 2).float()
    for z in range(0, case.shape[0], 7):
        restorer.add(logits[:, z : z + 7])
    result = restorer.finish()
    assert dice(result.classes, moving_label) > 0.9
    assert np.allclose(result.probabilities.sum(axis=0), 1, atol=1e-5)
    plain = LabelRestorer(restoration, plan.labels)
    plain.add(logits)
    assert np.array_equal(plain.finish().classes, result.classes)


def test_what_has_no_size_cannot_be_aligned(make_plan):
    image, _ = head()
    atlas = make_atlas(image, make_plan(), GRID)
    flat = dataclasses.replace(image, geometry=dataclasses.replace(image.geometry, spacing_mm=None))
    with pytest.raises(DataError, match="no spacing"):
        prepare(flat, make_plan(), GRID, key="a/b", atlas=atlas)
