"""Batches as a function of their number: element i of a phase is the same whoever draws it, and whenever."""

import logging
import math
import signal
import sys
import traceback
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from medplan.errors import DataError, MedplanError, MethodError
from medplan.machine import cores, host_memory, shared_memory
from medplan.method import Batch, Element, Phase
from medplan.plan.schema import Plan
from medplan.randomness import fold_in, generator
from medplan.runtime import Runtime
from medplan.samples.cases import CaseStore

__all__ = ["batches", "collate", "default_workers", "draw", "to_device"]

logger = logging.getLogger(__name__)

MOST_WORKERS = 12
PREFETCHED = 3
"""Batches that each worker has ready."""
LARGER_BOX = 3
"""Voxels that are read per voxel of a patch; patches that are rotated or shrunk come from larger boxes."""
WORKER_BYTES = 2**29


def default_workers(runtime: Runtime, plan: Plan) -> int:
    """Return how many worker processes suit device, cores and free memory.

    None on the CPU, where they only take cores from training. Where the memory that processes share is too
    small for a single one, as in many containers, the main process loads, and that is said.
    """
    if runtime.device.type == "cpu":
        return 0
    most = max(1, min(MOST_WORKERS, cores() // runtime.world - 1))
    share = plan.training.batch_size / runtime.world
    waiting = PREFETCHED * share * LARGER_BOX * math.prod(plan.patch_size) * (4 * plan.num_channels + 2)
    free, shared = host_memory(), shared_memory()
    if free is not None:
        most = min(most, max(1, int(free / 2 / runtime.world / (waiting + WORKER_BYTES))))
    fits = most if shared is None else int(shared / runtime.world / waiting)
    if fits < 1:
        logger.warning(
            "Processes can share only %.0f MiB here (/dev/shm), too little for one that loads patches: the "
            "main process loads them, while the GPU waits. Start the container with --shm-size=8g or "
            "--ipc=host.",
            (shared or 0) / 2**20,
        )
    return min(most, fits)


def draw(store: CaseStore, phase: Phase, index: int, *, seed: int) -> Element:
    """Draw element `index` of a phase; ``seed`` in the element is for its augmentation on the device."""
    element = phase.sample(store, generator(seed, phase.name, index))
    return {**element, "seed": fold_in(seed, phase.name, index, "augment")}


def batches(
    store: CaseStore, phase: Phase, *, seed: int, runtime: Runtime, workers: int, first_step: int = 0
) -> Generator[Batch, None, None]:
    """Yield the batches of one rank from `first_step` to the end of the phase, on the host, for `to_device`.

    The element numbers of step s are ``s * batch_size ... (s + 1) * batch_size - 1``; the ranks share them in
    order, so that two ranks see together what one rank would see alone.

    Raises: MethodError if the batch does not divide by the ranks; DataError if a worker process dies.
    """
    if phase.batch_size % runtime.world:
        raise MethodError(
            f"Phase '{phase.name}' has batches of {phase.batch_size}, which {runtime.world} processes cannot "
            "share evenly; choose another --batch-size."
        )
    share = phase.batch_size // runtime.world
    starts = (step * phase.batch_size + runtime.rank * share for step in range(first_step, phase.num_steps))
    loader = DataLoader(
        _Elements(store, phase, seed),
        batch_sampler=_Numbers(tuple(starts), share),
        num_workers=workers,
        collate_fn=_to_be_sent if workers else collate,
        pin_memory=runtime.device.type == "cuda",
        worker_init_fn=_leave_signals_to_the_parent,
        prefetch_factor=PREFETCHED if workers else None,
        multiprocessing_context=_start_method() if workers else None,
    )
    iterator = iter(loader)
    while True:
        try:
            batch = next(iterator)
        except StopIteration:
            return
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise DataError(
                f"A loader process ended by itself ({str(error).splitlines()[0]}). Often the machine ran "
                f"out of memory or of shared memory (/dev/shm); use fewer --workers (now {workers}), or 0."
            ) from error
        if isinstance(batch, _Failure):
            raise batch.error()
        yield batch


def collate(elements: Sequence[Element]) -> Batch:
    """Stack arrays into tensors; arrays whose shapes differ become a list of tensors, everything else a list.

    Raises: MethodError if the elements do not have the same keys.
    """
    batch: Batch = {}
    for element in elements:
        if element.keys() != elements[0].keys():
            raise MethodError(
                f"The sampler gave elements with different keys: {sorted(elements[0])} and {sorted(element)}."
            )
    for key in elements[0]:
        values = [element[key] for element in elements]
        if not all(isinstance(value, (np.ndarray, np.generic)) for value in values):
            batch[key] = values
        elif len({value.shape for value in values}) == 1:
            batch[key] = torch.from_numpy(np.stack(values))
        else:
            batch[key] = [torch.from_numpy(np.ascontiguousarray(value)) for value in values]
    return batch


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Copy the tensors of a batch to the device; everything else stays as it is."""

    def move(value: Any) -> Any:
        if isinstance(value, _Joined):
            return replace(value, joined=move(value.joined)).parts()
        if isinstance(value, Tensor):
            return value.to(device, non_blocking=True)
        return [move(item) for item in value] if isinstance(value, list) else value

    return {key: move(value) for key, value in batch.items()}


@dataclass(frozen=True)
class _Joined:
    """Tensors of unequal shapes, laid end to end in one.

    Every tensor that a worker sends takes an open file and a message of its own. A batch of a hundred images
    would take more open files than Linux allows a process by default (1024), and half of the time.
    """

    joined: Tensor
    shapes: tuple[torch.Size, ...]

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> "_Joined":
        return cls(torch.cat([tensor.flatten() for tensor in tensors]), tuple(t.shape for t in tensors))

    def parts(self) -> list[Tensor]:
        pieces = torch.split(self.joined, [shape.numel() for shape in self.shapes])
        return [piece.view(shape) for piece, shape in zip(pieces, self.shapes, strict=True)]

    def pin_memory(self) -> "_Joined":
        """Be moved to memory from which the device can copy by itself; `DataLoader` calls it."""
        return replace(self, joined=self.joined.pin_memory())


@dataclass(frozen=True)
class _Failure:
    """What went wrong in a worker, in a form that survives the way to the parent."""

    index: int
    message: str
    is_for_user: bool
    kind: type[MedplanError] = DataError

    def error(self) -> MedplanError:
        if self.is_for_user:
            return self.kind(self.message)
        return DataError(f"Element {self.index} could not be drawn in a loader process:\n{self.message}")


class _Elements(Dataset[Any]):
    def __init__(self, store: CaseStore, phase: Phase, seed: int) -> None:
        # Only what sampling needs: the whole phase may hold an augmentation or schedule that cannot be
        # pickled.
        self._store, self._seed = store, seed
        self._phase = Phase(
            name=phase.name, num_steps=phase.num_steps, batch_size=phase.batch_size, sample=phase.sample
        )

    def __getitem__(self, index: int) -> Any:
        if get_worker_info() is None:
            return draw(self._store, self._phase, index, seed=self._seed)
        try:
            return draw(self._store, self._phase, index, seed=self._seed)
        except MedplanError as error:
            return _Failure(index, str(error), True, type(error))
        except Exception:
            return _Failure(index, traceback.format_exc(), False)


class _Numbers:
    """The element numbers of each batch; can be iterated over again, as `DataLoader` asks of a sampler."""

    def __init__(self, starts: tuple[int, ...], share: int) -> None:
        self._starts, self._share = starts, share

    def __iter__(self) -> Iterator[list[int]]:
        return (list(range(start, start + self._share)) for start in self._starts)

    def __len__(self) -> int:
        return len(self._starts)


def _to_be_sent(elements: Sequence[Any]) -> Any:
    """Return the batch as a worker sends it, or the first failure among its elements."""
    failures = [element for element in elements if isinstance(element, _Failure)]
    if failures:
        return failures[0]
    batch = collate(elements)
    lists = {key: value for key, value in batch.items() if isinstance(value, list)}
    unequal = {key: value for key, value in lists.items() if isinstance(value[0], Tensor)}
    return batch | {key: _Joined.of(tensors) for key, tensors in unequal.items()}


def _start_method() -> str:
    # Forks of a process that uses an Apple GPU crash.
    return "fork" if sys.platform == "linux" else "spawn"


def _leave_signals_to_the_parent(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
