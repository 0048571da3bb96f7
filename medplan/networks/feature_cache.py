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
        self._kept: dict[Hashable, Tensor] = {}

    def __call__(
        self, keys: Sequence[Hashable], images_BCYX: Tensor, network: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Return the features of a batch, in its order.

        Args:
            keys: what each image is known by.
        """
        found = []
        for key, image_CYX in zip(keys, images_BCYX, strict=True):
            features = self._kept.get(key)
            if features is None:
                features = network(image_CYX[None])[0].detach()
                size = features.numel() * features.element_size()
                if size <= self._left:
                    self._left -= size
                    self._kept[key] = features.cpu()
            found.append(features.to(images_BCYX.device))
        return torch.stack(found)
