import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate, one_hot

from medplan.data.images import Geometry
from medplan.data.labels import LabelSpace
from medplan.plan.schema import Grid
from medplan.preprocess import restore
from medplan.preprocess.geometry import Restoration
from medplan.preprocess.prepare import prepare
from medplan.preprocess.restore import LabelRestorer

REGIONS = LabelSpace(names=("whole", "core", "rim"), values=((1, 2, 3), (2, 3), (3,)), region_order=(1, 2, 3))


def exclusive(num_classes):
    names = tuple(f"organ{i}" for i in range(1, num_classes))
    return LabelSpace(names=names, values=tuple((i,) for i in range(1, num_classes)))


def way_back(native, shape, *, lower=(0, 0, 0), upper=None):
    return Restoration(
        native=Geometry(shape=native, spacing_mm=(1.0, 1.0, 1.0)),
        axes=(0, 1, 2),
        flipped=(False, False, False),
        lower=lower,
        upper=upper or native,
        shape=shape,
    )


def logits_of(num_outputs, shape, seed=0, smooth=2.0):
    from scipy.ndimage import gaussian_filter

    scores = np.random.default_rng(seed).standard_normal((num_outputs, *shape))
    return torch.from_numpy(gaussian_filter(scores, (0, smooth, smooth, smooth)).astype(np.float32) * 20)


def restored(restoration, labels, logits, *, thickness=3, **options):
    restorer = LabelRestorer(restoration, labels, **options)
    for z in range(0, logits.shape[1], thickness):
        restorer.add(logits[:, z : z + thickness])
    return restorer.finish()


def naive(logits, shape, labels):
    """Interpolate everything in double precision; return classes and how clear the decision was."""
    dense = interpolate(logits[None].double(), size=shape, mode="trilinear", align_corners=False)[0]
    if labels.is_exclusive:
        best = dense.topk(2, dim=0).values
        return dense.argmax(0).numpy(), (best[0] - best[1]).numpy()
    above = (dense > 0).numpy()
    numbers = np.arange(1, len(above) + 1)[:, None, None, None]
    return (above * numbers).max(axis=0), dense.abs().min(0).values.numpy()


@pytest.mark.parametrize(
    ("shape", "native"),
    [
        ((12, 14, 16), (20, 31, 17)),
        ((12, 20, 16), (5, 9, 16)),
        ((1, 16, 16), (1, 40, 25)),
        ((3, 1, 2), (7, 5, 4)),
    ],
)
@pytest.mark.parametrize("labels", [exclusive(2), exclusive(5), REGIONS], ids=["two", "five", "regions"])
@pytest.mark.parametrize("dense_share", [0.0, 0.1, 1.0])
def test_restoring_equals_interpolating_all_logits(shape, native, labels, dense_share, monkeypatch):
    monkeypatch.setattr(restore, "_DENSE_SHARE", dense_share)
    logits = logits_of(labels.num_outputs, shape)
    expected, margin = naive(logits, native, labels)
    found = restored(way_back(native, shape), labels, logits).classes
    clear = margin > 1e-4
    assert clear.mean() > 0.99
    assert np.array_equal(found[clear], expected[clear])


@pytest.mark.parametrize("smooth", [0.0, 3.0], ids=["ragged", "smooth"])
def test_the_thickness_of_the_slabs_does_not_matter(smooth):
    labels, way = exclusive(4), way_back((23, 20, 30), (17, 13, 11))
    logits = logits_of(4, (17, 13, 11), smooth=smooth)
    first = restored(way, labels, logits, thickness=1).classes
    for thickness in (2, 5, 17):
        assert np.array_equal(restored(way, labels, logits, thickness=thickness).classes, first)


@pytest.mark.parametrize("direction", [(1, 0, 0, 0, 1, 0, 0, 0, 1), (0, -1, 0, 0, 0, 1, -1, 0, 0)])
def test_restoring_the_prepared_label_gives_the_label(direction, make_plan, make_image, noise):
    label = np.random.default_rng(0).integers(0, 3, (6, 7, 8))
    image = make_image(noise((1, 6, 7, 8)), (2.0, 1.0, 1.5), direction=tuple(map(float, direction)))
    image.array[:, :, :2] = 0
    label[:, :2] = 0
    plan = make_plan()
    case, restoration = prepare(image, plan, Grid(spacing_mm=None), label=label)
    assert case.pixels.size < image.array.size
    logits = one_hot(torch.from_numpy(case.codes.astype(np.int64)), 3).permute(3, 0, 1, 2).float()
    assert np.array_equal(restored(restoration, plan.labels, logits).classes, label)


def test_what_was_cropped_away_is_background():
    labels, way = exclusive(3), way_back((10, 10, 10), (4, 4, 4), lower=(2, 3, 4), upper=(6, 7, 8))
    logits = torch.zeros((3, 4, 4, 4))
    logits[2] = 5
    result = restored(way, labels, logits, probabilities=True)
    expected = np.zeros((10, 10, 10))
    expected[2:6, 3:7, 4:8] = 2
    assert np.array_equal(result.classes, expected)
    assert np.allclose(result.probabilities.sum(axis=0), 1)
    assert (result.probabilities.argmax(axis=0) == expected).all()


@pytest.mark.parametrize("labels", [exclusive(4), REGIONS], ids=["exclusive", "regions"])
def test_probabilities_are_those_of_the_interpolated_logits(labels, tmp_path):
    logits = logits_of(labels.num_outputs, (5, 6, 7))
    dense = interpolate(logits[None], size=(9, 8, 7), mode="trilinear", align_corners=False)[0]
    expected = dense.softmax(0) if labels.is_exclusive else dense.sigmoid()
    way, file = way_back((9, 8, 7), (5, 6, 7)), tmp_path / "probabilities.npy"
    result = restored(way, labels, logits, probabilities=True, file=file)
    assert np.allclose(result.probabilities, expected, atol=1e-5)
    assert np.array_equal(np.load(file), result.probabilities)
    assert np.array_equal(result.classes, restored(way, labels, logits).classes)


def test_later_regions_are_written_over_earlier_ones():
    logits = torch.tensor([1.0, 1.0, -1.0]).reshape(3, 1, 1, 1).expand(3, 2, 2, 2)
    assert (restored(way_back((2, 2, 2), (2, 2, 2)), REGIONS, logits).classes == 2).all()
    assert (restored(way_back((4, 4, 4), (2, 2, 2)), REGIONS, -logits.abs()).classes == 0).all()


def test_more_classes_than_a_byte_holds():
    labels = exclusive(300)
    logits = torch.zeros((300, 2, 2, 2))
    logits[299] = 1
    classes = restored(way_back((3, 3, 3), (2, 2, 2)), labels, logits).classes
    assert classes.dtype == np.int16
    assert (classes == 299).all()


def test_slabs_that_do_not_fit_are_refused():
    restorer = LabelRestorer(way_back((4, 4, 4), (2, 2, 2)), exclusive(2))
    with pytest.raises(ValueError, match="does not fit"):
        restorer.add(torch.zeros((2, 1, 3, 2)))
    restorer.add(torch.zeros((2, 1, 2, 2)))
    with pytest.raises(ValueError, match="only 1 of 2"):
        restorer.finish()
