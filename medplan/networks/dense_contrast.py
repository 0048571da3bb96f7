"""Dense contrastive learning: two views of a picture agree, as wholes and cell by cell.

Source: Wang et al. 2021, arXiv:2011.09157 (DenseCL); He et al. 2020, arXiv:1911.05722 (MoCo: key network and
queue). Official code: GPL-3.0, read, not copied.
"""

# Shapes: B pictures, C backbone channels, D projected features, N cells of a map, L entries of a queue.

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medplan.networks.average import MovingAverage

__all__ = ["DenseContrast", "DenseHead", "Projection", "info_nce", "match", "queue_length"]

TEMPERATURE = 0.2
DIMENSION = 128


class Projection:
    """What the head makes of a map: `whole` (B, D), `cells` (B, D, N) and their mean `average` (B, D).

    None is normalised.
    """

    def __init__(self, whole: Tensor, cells: Tensor) -> None:
        self.whole, self.cells, self.average = whole, cells, cells.mean(2)


class DenseHead(nn.Module):
    """Two projections of a map (B, C, Y, X): of its mean, and of every cell."""

    def __init__(self, channels: int, *, hidden: int | None = None) -> None:
        super().__init__()
        hidden = hidden or channels
        self.whole = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, DIMENSION))
        self.cells = nn.Sequential(nn.Conv2d(channels, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, DIMENSION, 1))

    def forward(self, features_BCYX: Tensor) -> Projection:
        return Projection(self.whole(features_BCYX.mean((2, 3))), self.cells(features_BCYX).flatten(2))


class DenseContrast(nn.Module):
    """Query head, and the key side as buffers: a trailing copy of backbone and head, and two queues.

    Args:
        backbone: query network, (B, C, Y, X) -> (B, channels, y, x); not kept here.
        queue_length: keys that serve as negatives, per queue; at least a batch.
        momentum: share of the old key weights that each step keeps.
        groups: parts that a batch of keys is split into at random for batch normalisation, so that its
            statistics do not tell which query belongs to which key. Differs: the original shuffles among
            processes, and does nothing where there is one.
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        channels: int,
        queue_length: int,
        momentum: float = 0.999,
        groups: int = 2,
        hidden: int | None = None,
    ) -> None:
        super().__init__()
        self.head = DenseHead(channels, hidden=hidden)
        self.momentum, self.groups = momentum, groups
        self.key_backbone, self.key_head = MovingAverage(backbone), MovingAverage(self.head)
        for name in ("whole_queue", "dense_queue"):
            self.register_buffer(name, F.normalize(torch.randn(queue_length, DIMENSION), dim=1))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))

    def losses(
        self, backbone: nn.Module, query_BCYX: Tensor, key_BCYX: Tensor, *, output_stride: int
    ) -> tuple[Tensor, Tensor]:
        """Move the key side, and return the global and the dense loss of two views, not weighted.

        The keys of this batch enter the queues, for later batches.
        """
        self.trail(backbone)
        features: Tensor = backbone(query_BCYX, output_stride)
        with torch.no_grad():
            keys = self._keys(backbone, key_BCYX, output_stride)
        return self.compare(features, keys)

    def compare(self, query_BCYX: Tensor, key_BCYX: Tensor) -> tuple[Tensor, Tensor]:
        """Return both losses of two backbone maps, and put the keys into the queues."""
        query = self.head(query_BCYX)
        with torch.no_grad():
            key: Projection = self.key_head.call(self.head, key_BCYX)
            whole, cells, average = (F.normalize(x, dim=1) for x in (key.whole, key.cells, key.average))
            best_BN = match(query_BCYX, key_BCYX)
        of_whole = info_nce(F.normalize(query.whole, dim=1), whole, self.get_buffer("whole_queue"))
        positive = cells.gather(2, best_BN[:, None].expand(-1, cells.shape[1], -1))
        mine, theirs = (x.transpose(1, 2).flatten(0, 1) for x in (F.normalize(query.cells, dim=1), positive))
        of_cells = info_nce(mine, theirs, self.get_buffer("dense_queue"))
        self._enqueue(whole, average)
        return of_whole, of_cells

    def trail(self, backbone: nn.Module) -> None:
        """Move the key weights towards the query weights by 1 - momentum."""
        self.key_backbone.update(backbone, decay=self.momentum, leaves_buffers=True)
        self.key_head.update(self.head, decay=self.momentum, leaves_buffers=True)

    def restart(self, backbone: nn.Module) -> None:
        """Set the key backbone equal to the query's, whose weights were loaded."""
        self.key_backbone.update(backbone, decay=0.0)

    def _keys(self, backbone: nn.Module, key_BCYX: Tensor, output_stride: int) -> Tensor:
        number = len(key_BCYX)
        order = torch.randperm(number, device=key_BCYX.device)
        parts = order.chunk(max(1, min(self.groups, number // 2)))
        maps = [self.key_backbone.call(backbone, key_BCYX[part], output_stride) for part in parts]
        return torch.cat(maps)[order.argsort()]

    def _enqueue(self, whole_BD: Tensor, average_BD: Tensor) -> None:
        whole, dense = self.get_buffer("whole_queue"), self.get_buffer("dense_queue")
        place = self.get_buffer("place")
        count = min(len(whole_BD), len(whole))
        places = (place + torch.arange(count, device=place.device)) % len(whole)
        whole.index_copy_(0, places, whole_BD[:count].to(whole.dtype))
        dense.index_copy_(0, places, average_BD[:count].to(dense.dtype))
        place.copy_((place + count) % len(whole))


def queue_length(pictures: int, *, asked: int, batch_size: int) -> int:
    """Return how many negatives are kept: no more than there are pictures (0 if nobody knows), so that a
    picture is not its own negative, in whole batches, and one batch at least.
    """
    return max(1, min(asked, pictures or asked) // batch_size) * batch_size


def match(query_BCYX: Tensor, key_BCYX: Tensor) -> Tensor:
    """Return (B, N): for every cell of the query map the cell of the key map with the highest cosine.

    Cells are counted row by row.
    """
    query, key = (F.normalize(x.flatten(2), dim=1) for x in (query_BCYX, key_BCYX))
    return torch.einsum("bcn,bcm->bnm", query, key).argmax(2)


def info_nce(query_BD: Tensor, key_BD: Tensor, queue_LD: Tensor) -> Tensor:
    """Return the mean cross-entropy of telling the key of each query from the queue, all unit vectors.

    The queue may be changed before the backward pass.
    """
    positive = (query_BD * key_BD).sum(1, keepdim=True)
    negative = query_BD @ queue_LD.clone().T.to(query_BD.dtype)
    logits = torch.cat([positive, negative.to(positive.dtype)], dim=1) / TEMPERATURE
    return F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long))
