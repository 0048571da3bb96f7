"""What a training step takes of a GPU's memory, found by running it on tensors without values.

The method's networks are built on the device ``meta``, where tensors have a shape and no memory. A training
step is run on them, and every tensor that autograd keeps for the backward pass is counted, each storage once.

The estimate is the sum of
    * parameters and buffers, gradients (one float32 per parameter that is trained), the optimisers' state;
    * the largest amount that is kept for a backward pass at any time of the step, with convolutions and
      matrix products in bfloat16 (or float16, which is as long), as autocast runs them;
    * twice the largest single tensor kept: the backward pass holds the gradients of the output and of the
      input of a layer;
    * a margin of 10 % for the fragments of the allocator and the workspace of convolutions, and 512 MB for
      the CUDA context.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode

from medplan.errors import MethodError
from medplan.method import Batch, Method, Phase, Progress
from medplan.plan.schema import DatasetPlan, Plan
from medplan.samples.cases import Case, CaseStore

__all__ = ["Footprint", "measure"]

MARGIN = 1.10
CONTEXT_BYTES = 512 * 2**20
META = torch.device("meta")
_VOLUMES = ("image", "label")

Voxels = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Bytes that a training step is expected to take at most; see the module for what each is.

    Attributes:
        fixed: parameters, buffers, gradients and optimiser state: equal for every batch size.
        kept: for the backward pass.
        largest: the largest single tensor kept.
        flops: multiply-adds times two of the forward and backward pass.
    """

    fixed: int
    kept: int
    largest: int
    flops: int = 0

    @property
    def total(self) -> int:
        return round(MARGIN * (self.fixed + self.kept + 2 * self.largest)) + CONTEXT_BYTES


def measure(method_factory: Callable[[Plan], Method], plan: Plan) -> Footprint:
    """Run one training step of every phase that has any without values and return the dearest.

    Raises: MethodError if the method looks at values in its training step; it should override
        `Method.footprint_step` then.
    """
    with META:
        method = method_factory(plan)
    method.train()
    footprints = [_measure_phase(method, plan, phase) for phase in method.phases() if phase.num_steps]
    if not footprints:
        own = [*method.parameters(), *method.buffers()]
        return Footprint(fixed=sum(map(_size, own)), kept=0, largest=0)
    dearest = max(footprints, key=lambda footprint: footprint.total)
    return replace(dearest, flops=max(footprint.flops for footprint in footprints))


def _measure_phase(method: Method, plan: Plan, phase: Phase) -> Footprint:
    optimizers = method.begin(phase.name)
    groups = [group for optimizer in optimizers.values() for group in optimizer.param_groups]
    trained = {id(parameter): parameter for group in groups for parameter in group["params"]}
    own = [*method.parameters(), *method.buffers()]
    fixed = sum(_size(tensor) for tensor in own) + sum(_size(parameter) for parameter in trained.values())
    fixed += sum(_state_bytes(optimizer) for optimizer in optimizers.values())
    ledger = _Ledger(own)
    update = _Update(optimizers, ledger)
    batch = _batch(plan, phase)
    try:
        with (
            torch.autograd.graph.saved_tensors_hooks(ledger.pack, ledger.unpack),
            META,
            _Autocast() as counted,
        ):
            method.footprint_step(
                batch, update, Progress(phase=phase.name, step=0, num_steps=phase.num_steps)
            )
    except (RuntimeError, NotImplementedError, ValueError, TypeError) as error:
        raise MethodError(
            f"{plan.method}: phase '{phase.name}' could not be measured on tensors without values ({error}). "
            "A method that looks at values in its training step should override 'footprint_step'."
        ) from error
    ledger.note()
    return Footprint(fixed=fixed, kept=ledger.most, largest=ledger.largest, flops=3 * counted.flops)


class _Ledger:
    """Counts the storages that autograd holds, from when they are kept until their graph is freed."""

    def __init__(self, own: Sequence[Tensor]) -> None:
        self.own = {_key(tensor) for tensor in own}
        self.holders: dict[int, int] = {}
        self.sizes: dict[int, int] = {}
        self.now = self.most = self.largest = 0

    def pack(self, tensor: Tensor) -> "_Kept":
        key = _key(tensor)
        if key not in self.own and tensor.device.type == "meta":
            if not self.holders.get(key):
                self.sizes[key] = tensor.untyped_storage().nbytes()
                self.now += self.sizes[key]
                self.largest = max(self.largest, self.sizes[key])
                self.most = max(self.most, self.now)
            self.holders[key] = self.holders.get(key, 0) + 1
        # The result of an operation would keep its own graph, and with it this holder, alive.
        return _Kept(self, tensor.detach(), key)

    def unpack(self, kept: "_Kept") -> Tensor:
        return kept.tensor

    def release(self, key: int) -> None:
        if key in self.holders:
            self.holders[key] -= 1
            if not self.holders[key]:
                self.now -= self.sizes[key]
                del self.holders[key]

    def note(self) -> None:
        self.most = max(self.most, self.now)


class _Kept:
    """What autograd holds in place of a tensor; it dies with the graph."""

    def __init__(self, ledger: _Ledger, tensor: Tensor, key: int) -> None:
        self.ledger, self.tensor, self.key = ledger, tensor, key

    def __del__(self) -> None:
        self.ledger.release(self.key)


class _Update:
    """An `Update` that steps nothing."""

    def __init__(self, optimizers: Mapping[str, Optimizer], ledger: _Ledger) -> None:
        self.optimizers, self.ledger = optimizers, ledger

    def minimise(self, loss: Tensor, name: str = "main", *, keep_graph: bool = False) -> None:
        self.apply(self.gradients(loss, name, keep_graph=keep_graph), name)

    def gradients(
        self, loss: Tensor, name: str = "main", *, keep_graph: bool = False, inputs: Sequence[Tensor] = ()
    ) -> list[Tensor]:
        self.ledger.note()
        groups = self.optimizers[name].param_groups
        parameters = [parameter for group in groups for parameter in group["params"]]
        return [torch.zeros_like(tensor) for tensor in (*parameters, *inputs)]

    def apply(self, gradients: Sequence[Tensor], name: str = "main") -> None:
        return None


class _Autocast(TorchFunctionMode):
    """Does on ``meta`` what autocast does on a GPU: convolutions and matrix products compute in bfloat16.

    Counts their floating-point operations on the way.
    """

    lowered = frozenset(
        {
            F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d,
            F.linear, F.bilinear, F.scaled_dot_product_attention,
            torch.matmul, torch.bmm, torch.mm, torch.addmm, torch.einsum, torch.baddbmm,
            Tensor.matmul, Tensor.__matmul__, Tensor.__rmatmul__, Tensor.bmm, Tensor.mm,
        }
    )  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func not in self.lowered:
            return func(*args, **kwargs)
        args = tuple(_lower(value) for value in args)
        result = func(*args, **{name: _lower(value) for name, value in kwargs.items()})
        self.flops += _flops(func, args, kwargs, result)
        return result


def _lower(value: Any) -> Any:
    if isinstance(value, (list, tuple)) and any(isinstance(entry, Tensor) for entry in value):
        return type(value)(_lower(entry) for entry in value)
    return value.bfloat16() if isinstance(value, Tensor) and value.dtype == torch.float32 else value


def _flops(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Tensor) -> int:
    if func is torch.einsum or len(args) < 2 or not isinstance(args[1], Tensor):
        return 0
    first, second = args[0], args[1]
    if func in (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d):
        return int(2 * first.numel() * second[0].numel())
    if func in (F.conv1d, F.conv2d, F.conv3d):
        return 2 * result.numel() * second[0].numel()
    if func is F.scaled_dot_product_attention:
        return int(4 * first.numel() * second.shape[-2])
    return 2 * result.numel() * int(first.shape[-1])


class _BlankCase(Case):
    """A case of one value, all foreground, that takes no memory and is cut without copying."""

    def image(self, lower: Voxels | None = None, upper: Voxels | None = None) -> npt.NDArray[np.float32]:
        return np.broadcast_to(np.float32(0), (self.pixels.shape[0], *self._box(lower, upper)))

    def label(self, lower: Voxels | None = None, upper: Voxels | None = None) -> npt.NDArray[np.int16]:
        return np.broadcast_to(np.int16(1), self._box(lower, upper))

    def _box(self, lower: Voxels | None, upper: Voxels | None) -> tuple[int, ...]:
        return tuple(high - low for low, high in zip(lower or (0, 0, 0), upper or self.shape, strict=True))


class _Blank(CaseStore):
    """A store of blank cases that have the patch's size."""

    def __init__(self, plan: Plan) -> None:
        self.planned, self.keys = plan, plan.roles(0)

    def role(self, name: str) -> tuple[str, ...]:
        return self.keys.get(name, ())

    def plan_of(self, key: str) -> DatasetPlan:
        return self.planned.dataset(key.split("/", 1)[0])

    def __getitem__(self, key: str) -> Case:
        dataset = self.plan_of(key)
        fixed = self.planned.grid.shape or self.planned.patch_size
        shape = (max(1, fixed[0]), max(1, fixed[1]), max(1, fixed[2]))
        codes = np.broadcast_to(np.int16(1), shape)
        centre = np.array([[side // 2 for side in shape]])
        return _BlankCase(
            key=key,
            pixels=np.broadcast_to(np.float32(0), (len(dataset.channels), *shape)),
            codes=codes,
            spacing_mm=self.planned.grid.spacing_mm,
            # Novel classes are kept out of training: a case that shows one might not be drawn from.
            locations={
                code: centre
                for code in range(1, len(dataset.labels.codes) + 1)
                if not dataset.labels.is_exclusive or dataset.labels.names[code - 1] not in dataset.novel
            },
            domain=next(iter(dataset.domains.values()), None),
            extra=_Anything(codes),
        )


class _Anything(Mapping[str, Any]):
    """Extra volumes of any name."""

    def __init__(self, volume: Any) -> None:
        self.volume = volume

    def __getitem__(self, name: str) -> Any:
        return self.volume

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def _batch(plan: Plan, phase: Phase) -> Batch:
    element = phase.sample(_Blank(plan), np.random.default_rng(0))
    batch: Batch = {}
    for name, value in element.items():
        if isinstance(value, str):
            batch[name] = [value] * phase.batch_size
        elif isinstance(value, (np.ndarray, np.generic, int, float)):
            array = np.asarray(value)
            shape = array.shape
            # A sampler may read a larger box, which the augmentation brings to the patch size.
            if element.get(re.sub("(image|label)$", "transform", name)) is not None and name[-5:] in _VOLUMES:
                shape = (*shape[:-3], *plan.patch_size)
            kind = torch.from_numpy(np.empty(0, array.dtype)).dtype
            batch[name] = torch.empty((phase.batch_size, *shape), dtype=kind, device=META)
    return batch


def _state_bytes(optimizer: Optimizer) -> int:
    """Let the optimiser step on gradients without values, and count what it keeps."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for parameter in parameters:
        parameter.grad = None
    kept = (
        value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)
    )
    return sum(_size(value) for value in kept)


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _size(tensor: Tensor) -> int:
    return int(tensor.untyped_storage().nbytes())
