"""An image takes the intensities of another one, and keeps what is brighter than what."""

import numpy as np
import torch

from medplan.randomness import generator
from medplan.samples.cases import Case
from medplan.samples.histogram import quantiles
from medplan.samples.recolour import match_histogram
from medplan.samples.sampling import DrawsHistogram, LabelledAndUnlabelled
from tests.train.toy import toy_plan, toy_store

SHAPE = (2, 6, 20, 24)


def image(*, scale: float, exponent: float, seed: int = 0) -> np.ndarray:
    return (scale * generator(seed).random(SHAPE) ** exponent - 1).astype(np.float32)


def matched(source: np.ndarray, target: np.ndarray, *, share: float = 1.0) -> np.ndarray:
    histogram = torch.from_numpy(quantiles(target))
    return match_histogram(torch.from_numpy(source), histogram, share=share).numpy()


def test_an_image_matched_with_itself_stays() -> None:
    source = image(scale=3, exponent=2)
    assert np.allclose(matched(source, source), source, atol=0.02)


def test_a_matched_image_has_the_histogram_of_the_target_and_the_order_of_the_source() -> None:
    source, target = image(scale=3, exponent=2), image(scale=7, exponent=0.5, seed=1)
    changed = matched(source, target)
    assert np.allclose(quantiles(changed), quantiles(target), atol=0.02)
    for old, new in zip(source, changed, strict=True):
        assert (np.diff(new.ravel()[old.ravel().argsort()]) >= -1e-6).all()


def test_the_share_leads_from_the_old_intensities_to_the_new_ones() -> None:
    source, target = image(scale=3, exponent=2), image(scale=7, exponent=0.5, seed=1)
    assert np.array_equal(matched(source, target, share=0.0), source)
    half = matched(source, target, share=0.5)
    assert np.allclose(half, (source + matched(source, target)) / 2, atol=1e-5)


def test_air_of_one_intensity_stays_of_one_intensity_and_becomes_the_mean_of_what_it_replaces() -> None:
    source, target = image(scale=3, exponent=1), image(scale=2, exponent=1, seed=1)
    source[:, :3] = -5.0
    changed = matched(source, target)
    air = changed[:, :3]
    assert np.ptp(air, axis=(1, 2, 3)).max() < 1e-6 and air.max() < changed[:, 3:].min()
    lowest_half = np.sort(target, axis=None)[: target.size // 2]
    assert np.allclose(air.mean(), lowest_half.mean(), atol=0.05)


def test_flat_images_stay_flat() -> None:
    flat = np.full(SHAPE, 2.0, np.float32)
    changed = matched(flat, image(scale=1, exponent=1))
    assert np.isfinite(changed).all() and np.ptp(changed, axis=(1, 2, 3)).max() < 1e-6
    assert np.array_equal(matched(image(scale=1, exponent=1), flat), flat)


def test_a_large_volume_has_the_quantiles_of_a_part_of_its_voxels() -> None:
    large = generator(0).random((1, 128, 128, 200)).astype(np.float32)
    assert np.allclose(quantiles(large)[0], np.linspace(0, 1, 33), atol=0.005)


def test_a_pair_of_patches_comes_with_the_histogram_of_an_unlabelled_case() -> None:
    store = toy_store(toy_plan())
    known = [store[key].histogram for key in store.role("unlabelled")]
    found = DrawsHistogram(LabelledAndUnlabelled((8, 12, 12)))(store, generator(0))["histogram"]
    assert any(np.array_equal(found, histogram) for histogram in known)


def test_quantiles_that_were_stored_are_not_computed_again() -> None:
    kept = np.zeros((2, 33), np.float32)
    assert Case(key="D/a", pixels=image(scale=1, exponent=1), quantiles=kept).histogram is kept
