"""Checkpoints: the only place that calls `torch.save` and `torch.load`.

A model file is a dictionary with ``format`` (1), ``plan`` (the plan as plain data), ``fold``, ``step``,
``score`` (validation score or None) and ``weights`` (the state of the method). ``best.pt`` holds these;
``last.pt`` holds besides ``training``: phase, step in it and the state of its optimisers.
"""

import os
import pickle
import struct
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medplan.errors import CheckpointError
from medplan.plan.schema import Fold, Plan
from medplan.records import decode, encode

__all__ = [
    "load",
    "load_published",
    "plan_of",
    "restore",
    "save",
    "save_run_state",
    "save_weights",
    "unwrapped",
]

FORMAT = 1
_WRAPPERS = ("ema_model_state_dict", "model_state_dict", "state_dict", "model", "net", "weights")
"""Under which published files, and those of this package, keep their weights."""
_UNREADABLE = (
    RuntimeError, EOFError, OSError, pickle.UnpicklingError,
    # What torch's reader of old files runs into where there is no such file at all.
    LookupError, ValueError, TypeError, AttributeError, struct.error,
)  # fmt: skip


def save(path: Path, state: Mapping[str, Any]) -> Path:
    """Write plain data and tensors under a temporary name, then rename.

    The bytes depend on the contents only, not on how they were computed or what the file is called.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    plain = _canonical(state)
    try:
        with temporary.open("wb") as file:
            torch.save(plain, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # torch turns what the system says into a RuntimeError
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise CheckpointError(f"{path}: could not be written ({reason}); is the disk full?") from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


def load(path: Path, *, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a file that `save` wrote. Runs no code from the file.

    Raises: CheckpointError if it is missing, cut short, or holds anything but plain data and tensors.
    """
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: there is no such file.") from None
    except _UNREADABLE as error:
        why = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(
            f"{path}: not a readable checkpoint ({why}). It may be cut short or come from another program; "
            "delete it or copy it again."
        ) from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: expected a dictionary, found {type(state).__name__}.")
    return state


def save_weights(
    path: Path, method: nn.Module, plan: Plan, *, fold: Fold, step: int, score: float | None
) -> Path:
    """Write what prediction needs: plan and weights."""
    return save(path, _model(method, plan, fold=fold, step=step, score=score))


def save_run_state(
    path: Path, method: nn.Module, plan: Plan, *, fold: Fold, step: int, score: float | None, training: Any
) -> Path:
    """Write what resuming needs: plan, weights and the state of training."""
    return save(path, {**_model(method, plan, fold=fold, step=step, score=score), "training": training})


def plan_of(state: Mapping[str, Any], *, path: Path) -> Plan:
    """Return the plan inside a model file's contents.

    Raises: CheckpointError if it is not a model file of a known format; PlanError if the plan cannot be read.
    """
    if not {"format", "plan", "weights"} <= state.keys():
        raise CheckpointError(f"{path}: not a model of medplan; it holds {_listing(map(str, state))}.")
    if state["format"] != FORMAT:
        raise CheckpointError(
            f"{path}: format {state['format']}; this version of medplan reads format {FORMAT}."
        )
    return decode(Plan, state["plan"], where=f"{path} (plan)")


def restore(module: nn.Module, weights: Mapping[str, Tensor], *, where: str, advice: str = "") -> None:
    """Load a state into a module, strictly.

    Args:
        where, advice: begin and end the error.

    Raises: CheckpointError listing what is missing, unknown or of another shape; nothing is loaded then.
    """
    own = module.state_dict()
    missing, unknown = own.keys() - weights.keys(), weights.keys() - own.keys()
    shapes = [
        f"{key} {tuple(weights[key].shape)} instead of {tuple(tensor.shape)}"
        for key, tensor in own.items()
        if isinstance(tensor, Tensor) and key in weights and weights[key].shape != tensor.shape
    ]
    if not missing and not unknown and not shapes:
        module.load_state_dict(dict(weights))
        return
    found = [("missing", sorted(missing)), ("unknown", sorted(unknown)), ("of another shape", shapes)]
    problems = "; ".join(f"{kind}: {_listing(keys)}" for kind, keys in found if keys)
    raise CheckpointError(f"{where}: the weights do not fit the network. {problems}. {advice}".rstrip())


def load_published(path: Path) -> dict[str, Tensor]:
    """Read a weight file as its authors published it: by `torch.load`, ``.safetensors``, or Keras' ``.h5``.

    Returns: its tensors, by their full names. No code of the file is run.
    Raises: CheckpointError if it cannot be read, naming the package to install where one is missing.
    """
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    return _read_keras(path) if path.suffix in (".h5", ".hdf5") else unwrapped(load(path))


def unwrapped(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Return the weights in what a file holds: averaged ones if there are such, never an optimiser's."""
    for key in _WRAPPERS:
        if isinstance(content.get(key), Mapping):
            return unwrapped(content[key])
    tensors = content.items()
    return {key: value for key, value in tensors if isinstance(key, str) and isinstance(value, Tensor)}


def _read_keras(path: Path) -> dict[str, Tensor]:
    try:
        import h5py
    except ImportError:
        raise CheckpointError(f"{path}: to read it, 'pip install h5py'.") from None
    found: dict[str, Tensor] = {}

    def keep(name: str, entry: Any) -> None:
        if isinstance(entry, h5py.Dataset) and entry.dtype.kind == "f":
            found[name] = torch.from_numpy(entry[()])

    try:
        with h5py.File(path, "r") as file:
            file.visititems(keep)
    except OSError as error:
        raise CheckpointError(f"{path}: not a readable Keras file ({error}).") from None
    return found


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError  # type: ignore[import-not-found, unused-ignore]
        from safetensors.torch import load_file  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        raise CheckpointError(
            f"{path}: to read it, 'pip install safetensors', or convert it to .pt."
        ) from None
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a readable file of safetensors ({error}).") from None


def _model(method: nn.Module, plan: Plan, *, fold: Fold, step: int, score: float | None) -> dict[str, Any]:
    weights = dict(method.state_dict())
    return {
        "format": FORMAT,
        "plan": encode(plan),
        "fold": fold,
        "step": step,
        "score": score,
        "weights": weights,
    }


def _canonical(value: Any) -> Any:
    """Rebuild the containers, so that pickle writes equal values as equal bytes.

    Pickle refers back to objects that it has met; whether two equal texts or tuples are one object differs
    between a resumed run and one that was never interrupted.
    """
    if isinstance(value, Tensor):
        value = value.detach()
        is_whole = value.untyped_storage().nbytes() == value.numel() * value.element_size()
        return value.cpu() if is_whole else value.cpu().clone()
    if isinstance(value, Mapping):
        return {_canonical(key): _canonical(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)([_canonical(item) for item in value])
    if isinstance(value, str):
        return sys.intern(str(value))
    return value


def _listing(keys: Iterable[str], *, at_most: int = 6) -> str:
    names = list(keys)
    shown = ", ".join(names[:at_most])
    return shown if len(names) <= at_most else f"{shown} and {len(names) - at_most} more"
