import numpy as np
import pytest

from medplan.data.labels import IGNORE
from medplan.preprocess.operators import operator
from medplan.preprocess.resample import resample_image, resample_label, resampled_shape

SHAPES = [
    ((20, 30, 25), (11, 40, 25)),
    ((1, 30, 30), (1, 17, 45)),
    ((5, 4, 3), (9, 2, 7)),
    ((1, 1, 1), (3, 3, 3)),
    ((40, 33, 50), (70, 20, 21)),
    ((4, 64, 64), (31, 32, 32)),
]


def blobs(seed, shape, num_classes=4):
    from scipy.ndimage import gaussian_filter

    scores = np.random.default_rng(seed).standard_normal((num_classes, *shape))
    return gaussian_filter(scores, (0, 2, 2, 2)).argmax(0).astype(np.int16)


def shares(codes, shape):
    """Interpolate the share of every code separately over the whole volume, in double precision."""
    values = np.unique(codes)
    matrices = [operator("linear", old, new) for old, new in zip(codes.shape, shape, strict=True)]
    return values, np.stack(
        [
            np.einsum("ai,bj,ck,ijk->abc", *matrices, (codes == value).astype(float), optimize=True)
            for value in values
        ]
    )


@pytest.mark.parametrize(("old", "new"), SHAPES)
def test_cubic_resampling_equals_that_of_skimage(old, new):
    resize = pytest.importorskip("skimage.transform").resize
    array = np.random.default_rng(0).standard_normal((2, *old)).astype(np.float32)
    expected = [
        resize(one.astype(float), new, order=3, mode="edge", anti_aliasing=False, clip=True) for one in array
    ]
    assert np.abs(resample_image(array, new) - np.stack(expected)).max() < 1e-5


def test_resampling_to_the_same_shape_is_the_identity():
    array = np.random.default_rng(0).standard_normal((2, 5, 6, 7)).astype(np.float32)
    codes = blobs(0, (5, 6, 7))
    assert np.array_equal(resample_image(array, (5, 6, 7)), array)
    assert np.array_equal(resample_label(codes, (5, 6, 7)), codes)


@pytest.mark.parametrize("kind", ["cubic", "linear"])
@pytest.mark.parametrize(("old", "new"), [(1, 5), (7, 3), (10, 25), (300, 301)])
def test_weights_of_every_output_sum_to_one(kind, old, new):
    assert np.allclose(operator(kind, old, new).sum(axis=1), 1, atol=1e-12)


def test_an_image_never_leaves_its_range():
    array = (np.random.default_rng(1).random((1, 9, 9, 9)) > 0.5).astype(np.float32)
    enlarged = resample_image(array, (20, 21, 22))
    assert enlarged.min() >= 0
    assert enlarged.max() <= 1


@pytest.mark.parametrize(("old", "new"), SHAPES)
def test_the_class_with_the_largest_share_wins(old, new):
    codes = blobs(3, old)
    values, share = shares(codes, new)
    found = resample_label(codes, new)
    chosen = share[np.searchsorted(values, found), *np.indices(new)]
    # Equal shares are decided by rounding; whatever wins has the largest share to within it.
    assert (chosen >= share.max(axis=0) - 1e-6).all()


def test_equal_shares_go_to_the_higher_code():
    codes = np.zeros((1, 1, 4), np.int16)
    codes[0, 0, 1:3] = (1, 2)
    assert resample_label(codes, (1, 1, 2)).ravel().tolist() == [1, 2]


def test_two_classes_agree_with_a_threshold_of_one_half():
    resize = pytest.importorskip("skimage.transform").resize
    codes = (blobs(5, (24, 30, 28), 2) > 0).astype(np.int16)
    expected = resize(codes.astype(float), (17, 19, 33), order=1, mode="edge", anti_aliasing=False) >= 0.5
    assert (resample_label(codes, (17, 19, 33)) != expected).mean() < 1e-5


def test_next_to_voxels_without_annotation_the_nearest_voxel_decides():
    codes = np.zeros((1, 12, 12), np.int16)
    codes[0, 3:9, 3:9] = 1
    codes[0, 6:, :] = IGNORE
    found = resample_label(codes, (1, 8, 8))
    values, share = shares(codes, (1, 8, 8))
    touched = share[list(values).index(IGNORE)] > 0
    nearest = codes[:, np.floor((np.arange(8) + 0.5) * 1.5).astype(int)]
    nearest = nearest[:, :, np.floor((np.arange(8) + 0.5) * 1.5).astype(int)]
    assert touched.any()
    assert np.array_equal(found[touched], nearest[touched])
    assert (found[~touched] != IGNORE).all()


def test_a_map_without_classes_stays_empty():
    assert not resample_label(np.zeros((4, 5, 6), np.int16), (7, 3, 2)).any()
    assert (resample_label(np.full((4, 5, 6), IGNORE, np.int16), (7, 3, 2)) == IGNORE).all()


def test_the_extent_stays_the_same():
    assert resampled_shape((10, 20, 1), (3.0, 0.75, 5.0), (1.5, 1.5, 20.0)) == (20, 10, 1)
