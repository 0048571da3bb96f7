from typing import Any

import numpy as np
import pytest
import torch

from medplan.errors import MethodError
from medplan.method import Phase
from medplan.randomness import generator
from medplan.samples.augment import Augmentation, adjust_contrast, adjust_gamma, blur, coarsen, shape_patches
from medplan.samples.sampling import Labelled, LabelledAndUnlabelled
from medplan.samples.spatial import Spatial
from medplan.train.loader import collate, draw
from tests.train.toy import toy_plan, toy_store

STORE: Any = toy_store(toy_plan())
SIZE = (8, 12, 12)
OFF = {
    name: (0.0, 1.0, 1.0)
    for name in ("noise", "blurring", "brightness", "contrast", "coarseness", "inverted_gamma", "gamma")
}
EVERYTHING = {
    "noise": (1.0, 0.05, 0.1), "blurring": (1.0, 0.5, 1.0), "brightness": (1.0, 0.75, 1.25),
    "contrast": (1.0, 0.75, 1.25), "coarseness": (1.0, 0.5, 1.0), "inverted_gamma": (1.0, 0.7, 1.5),
    "gamma": (1.0, 0.7, 1.5),
}  # fmt: skip


def elements(number: int, sampler: Any = None) -> list[Any]:
    sampler = sampler or Labelled(SIZE, spatial=Spatial.for_patch(SIZE))
    phase = Phase(name="p", num_steps=1, batch_size=1, sample=sampler)
    return [draw(STORE, phase, index, seed=0) for index in range(number)]


def augmented(items: list[Any], **options: Any) -> Any:
    return Augmentation(patch_size=SIZE, **options)(collate(items), torch.Generator().manual_seed(0))


def test_an_element_is_augmented_alike_in_every_batch() -> None:
    together = augmented(elements(6), **EVERYTHING)
    for number, element in enumerate(elements(6)):
        alone = augmented([element], **EVERYTHING)
        assert torch.equal(alone["image"][0], together["image"][number])
        assert torch.equal(alone["label"][0], together["label"][number])


def test_nothing_drawn_changes_nothing() -> None:
    items = elements(3, Labelled(SIZE))
    batch = augmented(items, mirror_axes=(), **OFF)
    assert np.array_equal(batch["image"].numpy(), np.stack([item["image"] for item in items]))
    assert np.array_equal(batch["label"].numpy(), np.stack([item["label"] for item in items]))


def test_image_and_label_are_mirrored_together_along_the_given_axes_only() -> None:
    items = elements(12, Labelled(SIZE))
    batch = augmented(items, mirror_axes=(0, 2), **OFF)
    flips = set()
    for number, item in enumerate(items):
        for axes in ((), (0,), (2,), (0, 2)):
            if np.array_equal(batch["image"][number], np.flip(item["image"], [axis + 1 for axis in axes])):
                assert np.array_equal(batch["label"][number], np.flip(item["label"], axes))
                flips.add(axes)
                break
        else:
            pytest.fail("not a flip along the given axes")
    assert len(flips) == 4


def test_both_images_of_a_pair_are_augmented_apart() -> None:
    items = elements(2, LabelledAndUnlabelled(SIZE, spatial=Spatial(rotation_probability=1.0)))
    batch = augmented(items, **EVERYTHING)
    assert batch["unlabelled_image"].shape == batch["image"].shape == (2, 1, *SIZE)
    assert "unlabelled_label" not in batch and not any(key.endswith("transform") for key in batch)


def test_labels_keep_to_the_classes_that_were_there() -> None:
    items = elements(20, Labelled(SIZE, spatial=Spatial(rotation_probability=1.0, scaling_probability=1.0)))
    batch = augmented(items)
    assert batch["label"].dtype == torch.int16 and set(batch["label"].unique().tolist()) <= {0, 1, 2}


@pytest.mark.parametrize("channels", [1, 3])
def test_everything_at_once_stays_finite_in_two_and_three_dimensions(channels: int) -> None:
    for size in ((1, 16, 12), (8, 12, 12)):
        image = torch.rand(2, channels, *size)
        batch = {"image": image, "seed": [1, 2], "case": ["a", "b"]}
        out = Augmentation(patch_size=size, **EVERYTHING)(batch, torch.Generator())  # type: ignore[arg-type]
        assert out["image"].shape == (2, channels, *size) and out["image"].isfinite().all()


def test_a_patch_of_the_wrong_size_is_refused() -> None:
    with pytest.raises(MethodError, match=r"'image' of the batch has patches \(8, 12, 12\).*\(4, 4, 4\)"):
        shape_patches(collate(elements(1, Labelled(SIZE))), (4, 4, 4))


def test_blurring_is_a_convolution_with_a_gaussian() -> None:
    from scipy.ndimage import gaussian_filter

    image = np.random.default_rng(0).standard_normal((12, 14, 16)).astype(np.float32)
    for sigma in (0.5, 0.8, 1.0):
        expected = gaussian_filter(image, sigma, mode="nearest", radius=max(1, round(3 * sigma)))
        assert np.allclose(blur(torch.from_numpy(image), sigma, axes=(0, 1, 2)), expected, atol=1e-5)


def test_blurring_leaves_the_other_axes_alone() -> None:
    image = torch.zeros(3, 9, 9)
    image[1, 4, 4] = 1
    out = blur(image, 1.0, axes=(1, 2))
    assert not out[0].any() and not out[2].any() and out.sum().item() == pytest.approx(1.0, abs=1e-5)


def test_coarsening_at_full_resolution_is_identity_and_keeps_constants() -> None:
    image = torch.rand(6, 8, 10)
    assert torch.allclose(coarsen(image, 1.0, axes=(0, 1, 2)), image, atol=1e-6)
    assert torch.allclose(coarsen(torch.full((6, 8, 10), 3.0), 0.5, axes=(0, 1, 2)), torch.tensor(3.0))


def test_gamma_keeps_mean_and_deviation_and_order() -> None:
    image = torch.rand(6, 8, 10) * 3 - 1
    out = adjust_gamma(image.clone(), 1.4)
    assert torch.allclose(out.mean(), image.mean(), atol=1e-5) and torch.allclose(
        out.std(), image.std(), atol=1e-4
    )
    assert torch.equal(image.flatten().argsort(), out.flatten().argsort())


def test_a_constant_image_survives_gamma_and_contrast() -> None:
    for change in (adjust_gamma, adjust_contrast):
        assert torch.allclose(change(torch.full((4, 4, 4), 2.0), 1.3), torch.tensor(2.0))


def test_contrast_keeps_the_range() -> None:
    image = torch.randn(6, 8, 10)
    out = adjust_contrast(image.clone(), 1.25)
    assert out.min() >= image.min() and out.max() <= image.max() and out.std() > image.std()


def test_a_shear_slants_slices_and_keeps_their_area() -> None:
    spatial = Spatial(rotation_probability=1.0, degrees=0.0, in_plane=True, shear_degrees=5.0)
    slants = []
    for number in range(200):
        transform = spatial.draw(np.random.default_rng(number), (1, 32, 32))
        assert transform is not None and not transform.scales_only
        matrix = np.array(transform.matrix)
        scale = np.sqrt(np.linalg.det(matrix))
        slants.append(np.rad2deg(np.arctan(matrix[2, 1] / scale)))
        assert matrix[1, 2] == 0 and matrix[0, 0] == 1
    assert 4 < np.max(slants) <= 5 and -5 <= np.min(slants) < -4


def test_transforms_come_as_often_as_they_should() -> None:
    augmentation = Augmentation(patch_size=SIZE)
    drawn = [augmentation.draw(generator(index), num_channels=1) for index in range(2000)]
    assert np.mean([one.noise_std is not None for one in drawn]) == pytest.approx(0.1, abs=0.02)
    assert np.mean([one.blur_vox[0] is not None for one in drawn]) == pytest.approx(0.1, abs=0.02)
    assert np.mean([one.gamma is not None for one in drawn]) == pytest.approx(0.3, abs=0.03)
