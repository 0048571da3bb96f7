"""A stand-in for a GPU: tensors that live there compute on the CPU, and mixing them with others is an error.

`emulated()` makes ``torch.device("cuda", 0)`` usable on a machine without one. What is moved there becomes a
`Far` tensor: its ``device`` is CUDA's, its values are real, it cannot be turned into a NumPy array, and an
operation on it and on a tensor of the host fails as CUDA's would. What makes the host wait for the device is
noted in `waits`. Kernels and speed are the CPU's: those need the real device.

torch's autograd engine does not run on a device that is not there, and its autocast follows the device that a
tensor has inside of torch. So there are two ways: by default tensors are the CPU's inside and everything is
computed, without autocast; with `autocast` they are CUDA's inside, follow its rules of precision, and
gradients are zeros.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

import medplan

__all__ = ["DEVICE", "Far", "emulated", "waits"]

DEVICE = torch.device("cuda", 0)
PACKAGE = f"{next(iter(medplan.__path__))}/"
aten = torch.ops.aten

waits: list["Wait"] = []
"""Where the host waited for the device."""

_autocast = False
_calls: list[bool] = []
"""Per call of torch that is running: whether what it makes lives on the device."""

ANSWERS: dict[str, Any] = {
    "_lazy_init": None, "is_available": True, "device_count": 1, "current_device": 0, "set_device": None,
    "get_device_capability": (9, 0), "get_device_name": "none", "is_bf16_supported": True,
    "max_memory_allocated": 0, "mem_get_info": (2**30, 2**34), "memory_reserved": 2**30,
    "empty_cache": None, "synchronize": None,
}  # fmt: skip
"""What `torch.cuda` says of the device."""

WAIT = {
    aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten.equal.default,
    aten._unique2.default, aten.unique_dim.default, aten.repeat_interleave.Tensor,
}  # fmt: skip
HOST_ALLOWED = {
    aten.copy_.default, aten.index.Tensor, aten.index_put.default, aten.index_put_.default,
    aten._index_put_impl_.default,
}  # fmt: skip


class Wait(NamedTuple):
    """A line of medplan, ``<file>:<number>``, and whether it ran in a training step."""

    place: str
    in_step: bool


class Far(Tensor):
    """A tensor on the emulated device."""

    _held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "Far":
        far: Far = Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE if _autocast else None,
            requires_grad=held.requires_grad,
        )
        far._held = held
        return far

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Far({self._held})"

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["_held"], None

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not _autocast:
            return _call(func, args, kwargs or {})
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class FarGenerator(torch.Generator):
    """A generator of the device."""

    device = DEVICE


class _Generator(torch.Generator):
    """What `torch.Generator` is meanwhile: makes one of the device that is asked for."""

    def __new__(cls, device: Any = "cpu") -> torch.Generator:
        return FarGenerator() if _is_far(device) else _HostGenerator(device)


_HostGenerator = torch.Generator


class _Functions(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(func, args, kwargs or {})


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


@contextlib.contextmanager
def emulated(*, autocast: bool = False) -> Iterator[torch.device]:
    """Make the device usable; yields it."""
    global _autocast
    waits.clear()
    load, former, swaps = torch.load, _autocast, torch.__future__.get_swap_module_params_on_conversion()

    def load_there(path: Any, *, map_location: Any = None, **options: Any) -> Any:
        state = load(path, map_location="cpu", **options)
        return _each(lambda x: x.to(map_location) if isinstance(x, Tensor) else x, state)

    _autocast = autocast
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "load", load_there)
            patch.setattr(torch, "Generator", _Generator)
            patch.setattr(Tensor, "pin_memory", lambda self, device=None: self)
            # Threads would not see the device.
            patch.setattr("medplan.predict.model.ahead", lambda slabs: slabs)
            patch.setattr(torch.accelerator, "is_available", lambda: True)
            for name, answer in ANSWERS.items():
                patch.setattr(torch.cuda, name, lambda *_, answer=answer, **__: answer)
            for check in ("_accelerator_graph_capture_health_check", "_cuda_graph_capture_health_check"):
                patch.setattr(torch.optim.Optimizer, check, lambda self: None, raising=False)
            if autocast:
                torch._C._ensureCUDADeviceGuardSet()
                torch._C._set_only_lift_cpu_tensors(True)
                patch.setattr(torch.backends.cudnn, "enabled", False)
                patch.setattr(torch.autograd, "grad", _no_gradients)
                patch.setattr(Tensor, "tolist", lambda self, plain=Tensor.tolist: plain(self.detach().cpu()))
            with contextlib.nullcontext() if autocast else _Functions(), _Operations():
                yield DEVICE
    finally:
        _autocast = former
        torch._C._set_only_lift_cpu_tensors(False)
        torch.__future__.set_swap_module_params_on_conversion(swaps)


def _no_gradients(outputs: Any, inputs: Sequence[Tensor], *_: Any, **__: Any) -> tuple[Tensor, ...]:
    return tuple(torch.zeros_like(value) for value in inputs)


def _call(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Answer a function of torch: what asks for the device, or moves tensors, by ourselves."""
    first = args[0] if args else None
    if isinstance(first, Far):
        if func in (Tensor.device.__get__, Tensor.is_cuda.__get__, Tensor.is_cpu.__get__):
            return DEVICE if func == Tensor.device.__get__ else func == Tensor.is_cuda.__get__
        if func in (Tensor.numpy, Tensor.__array__):
            raise TypeError(f"can't convert {DEVICE} tensor to numpy; use Tensor.cpu() first")
        if func in (Tensor.cpu, Tensor.tolist):
            near = _leave(first if func == Tensor.cpu else first.detach())
            return near if func == Tensor.cpu else near.tolist()
        if func is Tensor.to:
            return _move(first, args[1:], kwargs)
    if func is Tensor.to and args[1:] and isinstance(args[1], Far):
        return first.to(DEVICE, args[1].dtype, **kwargs)
    if func is Tensor.new_tensor and isinstance(first, Far):
        return torch.tensor(*args[1:], **{"dtype": first.dtype, **kwargs}).to(DEVICE)
    if func in (torch.tensor, torch.as_tensor) and _is_far(kwargs.get("device")):
        return func(*args, **{**kwargs, "device": "cpu"}).to(DEVICE)
    device = kwargs.get("device")
    far = (
        _is_far(device)
        if device is not None
        else any(isinstance(x, Far) for x in _tensors(*args, *kwargs.values()))
    )
    generator = kwargs.get("generator")
    if generator is not None and isinstance(generator, FarGenerator) != far:
        raise RuntimeError(f"{func}: expected a generator of the tensor's device, found {generator.device}")
    _calls.append(far)
    try:
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)
    finally:
        _calls.pop()


def _move(tensor: Far, rest: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    target = kwargs.pop("other", rest[0] if rest else None)
    if isinstance(target, Tensor):
        rest = (target.device, target.dtype)
    copy = kwargs.pop("copy", False)
    device, kind, _, layout = torch._C._nn._parse_to(*rest, **kwargs)
    if device is not None and device.type == "cpu":
        return _leave(tensor, kind)
    if kind in (None, tensor.dtype) and not copy and layout is None:
        return tensor
    return aten._to_copy.default(tensor, dtype=kind, device=DEVICE)


def _leave(tensor: Far, kind: torch.dtype | None = None) -> Tensor:
    _calls.append(False)
    try:
        return aten._to_copy.default(tensor, dtype=kind, device=torch.device("cpu"))
    finally:
        _calls.pop()


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation on what is held; its result lives where its arguments do."""
    tensors = list(_tensors(*args, *kwargs.values()))
    far = any(isinstance(x, Far) for x in tensors)
    near = [x for x in tensors if not isinstance(x, Far)]
    if far and any(x.dim() > 0 for x in near) and func not in HOST_ALLOWED:
        raise RuntimeError(
            f"{func}: expected all tensors on {DEVICE}, found {[x.shape for x in near]} on the host"
        )
    if func == aten.index.Tensor and far and not isinstance(args[0], Far):
        raise RuntimeError(f"{func}: indices on {DEVICE} for a tensor on the host")
    # A call from Python is asked for its device; what torch makes inside of it follows its arguments.
    inside = _calls[-1] if _calls else far
    stays = inside if func == aten._to_copy.default or not tensors else far
    if _autocast and kwargs.get("device") is not None:
        stays = False  # torch itself knows where tensors are
    stays = stays or _is_far(kwargs.get("device"))
    indices = args[1] if func in HOST_ALLOWED and len(args) > 1 and isinstance(args[1], (list, tuple)) else ()
    by_mask = any(x is not None and (x.dtype == torch.bool or not isinstance(x, Far)) for x in indices)
    arrives = func == aten._to_copy.default and stays and not far and not kwargs.get("non_blocking")
    if arrives or (far and (func in WAIT or not stays or by_mask or (func == aten.copy_.default and near))):
        waits.append(_where())
    found = _compute(func, *_each(_held, (args, kwargs)))
    if not stays:
        return found
    found = _each(lambda x: Far(x) if isinstance(x, Tensor) else x, found)
    return return_and_correct_aliasing(func, args, kwargs, found) if far else found


def _compute(func: Any, args: Any, kwargs: Any) -> Any:
    if func == aten._fused_sdp_choice.default:
        return 0  # the plain one: the others have kernels of their own per device
    try:
        return func(*args, **kwargs)
    except RuntimeError as error:
        if "half to float conversion" in str(error):
            return func(args[0].float(), args[1], False)
        low = {"'BFloat16'": torch.bfloat16, "'Half'": torch.float16}
        kind = next((low[name] for name in low if f"not implemented for {name}" in str(error)), None)
        if kind is None:
            raise
    # CUDA has all that we use in lower precision, the CPU has not.
    args = _each(lambda x: _retyped(x, kind, torch.float32), args)
    return _each(lambda x: _retyped(x, torch.float32, kind), func(*args, **kwargs))


def _retyped(value: Any, old: torch.dtype, new: torch.dtype) -> Any:
    return value.to(new) if isinstance(value, Tensor) and value.dtype == old else value


def _tensors(*values: Any) -> Iterator[Tensor]:
    """Yield the tensors among arguments; they are not looked for in dicts, as that of all copies is one."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(*value)


def _each(change: Callable[[Any], Any], value: Any) -> Any:
    """Return nested lists, tuples and dicts with each value in them changed."""
    if isinstance(value, dict):
        return type(value)((key, _each(change, item)) for key, item in value.items())
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return type(value)(_each(change, item) for item in value)
    return change(value)


def _where() -> Wait:
    """Return the innermost line of medplan that is running, and whether a training step is."""
    frame: Any = sys._getframe()
    place, in_step = "", False
    while frame is not None:
        file = frame.f_code.co_filename.removeprefix(PACKAGE)
        if file != frame.f_code.co_filename and not place:
            place = f"{file}:{frame.f_lineno}"
        in_step = in_step or (file == "train/loop.py" and frame.f_code.co_name == "take_step")
        frame = frame.f_back
    return Wait(place, in_step)


def _held(value: Any) -> Any:
    if isinstance(value, torch.device):
        return torch.device("cpu")
    return value._held if isinstance(value, Far) else value


def _is_far(device: Any) -> bool:
    return device is not None and torch.device(device).type == DEVICE.type
