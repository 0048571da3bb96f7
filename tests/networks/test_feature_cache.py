"""The laws of keeping features: each image is computed once, alone, and only as many are kept as fit."""

import torch

from medplan.networks.feature_cache import FeatureCache


class Counting:
    def __init__(self):
        self.seen = []

    def __call__(self, image):
        self.seen.append(tuple(image.shape))
        return image.mean(1, keepdim=True) * 2, image


def test_an_image_is_computed_once_and_by_itself():
    cache, network = FeatureCache(), Counting()
    images = torch.rand(3, 2, 4, 4)
    first = cache(["a", "b", "a"], images[[0, 1, 0]], network)
    again = cache(["b", "c"], images[[1, 2]], network)
    for found, own in ((first, images[[0, 1, 0]]), (again, images[[1, 2]])):
        assert torch.equal(found[0], own.mean(1, keepdim=True) * 2) and torch.equal(found[1], own)
    assert network.seen == [(1, 2, 4, 4)] * 3


def test_no_more_is_kept_than_the_limit():
    cache, network = FeatureCache(limit_bytes=4 * 4 * 4 * 3), Counting()
    images = torch.rand(2, 2, 4, 4)
    for _ in range(2):
        assert torch.equal(cache(["a", "b"], images, network)[0], images.mean(1, keepdim=True) * 2)
    assert len(network.seen) == 3, "the first was kept, the second computed twice"
