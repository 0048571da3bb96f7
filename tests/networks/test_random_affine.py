"""Random rotation and scaling of atlas, label and image together."""

import torch

from medplan.networks.random_affine import RandomAffine, rotations


def batch(size=(9, 10, 11)):
    image = torch.rand(2, 1, *size)
    label = torch.randint(0, 3, (2, *size)).short()
    return {"image": image, "unlabelled_image": image.flip(2), "label": label, "case": ["a", "b"]}


def test_no_rotation_and_scale_one_is_the_identity():
    given = batch()
    turned = RandomAffine(degrees=0.0, scale=(1.0, 1.0))(given, torch.Generator().manual_seed(0))
    for key in ("image", "unlabelled_image"):
        assert torch.allclose(turned[key], given[key], atol=1e-5)
    assert torch.equal(turned["label"], given["label"])


def test_image_and_label_stay_aligned():
    label = torch.zeros(1, 20, 20, 20, dtype=torch.int16)
    label[:, 6:13, 8:15, 4:11] = 1
    given = {"image": label[:, None].float(), "unlabelled_image": label[:, None].float(), "label": label}
    turned = RandomAffine()(given, torch.Generator().manual_seed(3))
    assert not torch.equal(turned["label"], label)
    assert ((turned["image"][:, 0] > 0.5) == (turned["label"] > 0)).float().mean() > 0.995
    assert torch.equal(turned["image"], turned["unlabelled_image"])
    assert turned["label"].dtype == torch.int16


def test_the_original_may_be_kept_and_a_seed_gives_the_same_again():
    given = batch()
    make = RandomAffine(keeps_original=True)
    one, two = (make(dict(given), torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(one["image"], given["image"])
    assert torch.equal(one["turned_image"], two["turned_image"])
    assert {"turned_image", "turned_label", "turned_unlabelled_image"} <= one.keys()


def test_rotations_are_rotations():
    matrices = rotations(torch.randn(4, 3))
    assert torch.allclose(matrices @ matrices.mT, torch.eye(3).expand(4, 3, 3), atol=1e-5)
    assert torch.allclose(torch.linalg.det(matrices), torch.ones(4), atol=1e-5)


def test_a_larger_scale_makes_the_image_larger():
    label = torch.zeros(1, 15, 15, 15, dtype=torch.int16)
    label[:, 5:10, 5:10, 5:10] = 1
    given = {"image": label[:, None].float(), "unlabelled_image": label[:, None].float(), "label": label}
    grown = RandomAffine(degrees=0.0, scale=(1.5, 1.5))(given, torch.Generator())
    assert int(grown["label"].sum()) > 2 * int(label.sum())
