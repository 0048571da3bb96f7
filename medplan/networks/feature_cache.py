"""Features of images that do not change, from networks that do not change, computed once."""

from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

__all__ = ["FeatureCache"]


class FeatureCache:
    """Keeps what a frozen network said of each image, in the memory of the host.

    Images pass the network one by one, so that what is kept depends on nothing but the image: not on its
    batch, nor on whether training was resumed.

    Args:
        limit_bytes: features beyond so many bytes are not kept, but computed every time.
    """

    def __init__(self, limit_bytes: int = 4 * 2**30) -> None:
        self._left = limit_bytes
        self._kept: dict[Hashable, tuple[Tensor, ...]] = {}

    def __call__(
        self,
        keys: Sequence[Hashable],
        images_BCYX: Tensor,
        network: Callable[[Tensor], tuple[Tensor, ...]],
    ) -> tuple[Tensor, ...]:
        """Return the maps of a batch, in its order.

        Args:
            keys: what each image is known by.
        """
        found = []
        for key, image_CYX in zip(keys, images_BCYX, strict=True):
            maps = self._kept.get(key)
            if maps is None:
                maps = tuple(each.detach() for each in network(image_CYX[None]))
                size = sum(each.numel() * each.element_size() for each in maps)
                if size <= self._left:
                    self._left -= size
                    self._kept[key] = tuple(each.cpu() for each in maps)
            found.append([each.to(images_BCYX.device) for each in maps])
        return tuple(torch.cat(same) for same in zip(*found, strict=True))
