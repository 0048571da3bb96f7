"""A histogram map replaces the intensities of one image by those of another, and nothing else."""

import numpy as np
import torch

from medplan.randomness import generator
from medplan.samples.cases import Case
from medplan.samples.histogram import histogram_map, quantiles
from medplan.samples.recolour import match_histogram
from medplan.samples.sampling import LabelledAndUnlabelled
from tests.train.toy import toy_plan, toy_store

SHAPE = (2, 6, 20, 24)


def image(*, scale: float, exponent: float, seed: int = 0) -> np.ndarray:
    return (scale * generator(seed).random(SHAPE) ** exponent - 1).astype(np.float32)


def matched(source: np.ndarray, target: np.ndarray, *, share: float = 1.0) -> np.ndarray:
    mapping = torch.from_numpy(histogram_map(quantiles(source), quantiles(target)))
    return match_histogram(torch.from_numpy(source), mapping, share=share).numpy()


def test_an_image_matched_with_itself_stays() -> None:
    source = image(scale=3, exponent=2)
    assert np.allclose(matched(source, source), source, atol=1e-5)


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
    assert np.ptp(air) < 0.1 and (air.max() < changed[:, 3:].min() + 0.1)
    lowest_half = np.sort(target, axis=None)[: target.size // 2]
    assert np.allclose(air.mean(), lowest_half.mean(), atol=0.05)
    beside = matched(source + np.float32(1e-4) * (source == -5.0), target)
    assert np.allclose(beside[:, :3], air, atol=0.05)


def test_intensities_outside_the_map_and_flat_images_stay_finite() -> None:
    mapping = torch.from_numpy(histogram_map(np.zeros((1, 33)), np.linspace(0, 1, 33)[None]))
    far = torch.tensor([-9.0, 0.0, 9.0]).reshape(1, 1, 1, 3)
    assert match_histogram(far, mapping, share=1.0).flatten().tolist() == [0.5, 0.5, 0.5]


def test_a_large_volume_has_the_quantiles_of_a_part_of_its_voxels() -> None:
    large = generator(0).random((1, 128, 128, 200)).astype(np.float32)
    assert np.allclose(quantiles(large)[0], np.linspace(0, 1, 33), atol=0.005)


def test_a_pair_of_patches_comes_with_the_map_between_their_cases() -> None:
    store = toy_store(toy_plan())
    element = LabelledAndUnlabelled((8, 12, 12))(store, generator(0))
    labelled, unlabelled = element["case"].split()
    expected = histogram_map(store[labelled].histogram, store[unlabelled].histogram)
    assert np.array_equal(element["histogram_map"], expected)


def test_quantiles_that_were_stored_are_not_computed_again() -> None:
    kept = np.zeros((2, 33), np.float32)
    assert Case(key="D/a", pixels=image(scale=1, exponent=1), quantiles=kept).histogram is kept
