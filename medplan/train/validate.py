"""Validation during training, by the code that predicts."""

from collections.abc import Callable, Collection

import numpy as np
import numpy.typing as npt

from medplan.data.labels import IGNORE, LabelSpace
from medplan.method import Method
from medplan.plan.schema import Plan
from medplan.predict.sliding_window import predict_classes
from medplan.runtime import Runtime
from medplan.samples.cases import CaseStore

__all__ = ["class_dice", "make_validator"]


def make_validator(
    plan: Plan, store: CaseStore, *, runtime: Runtime
) -> Callable[[Method], dict[str, float]] | None:
    """Return a function that scores a method on the validation cases of the fold, or None if there are none.

    It predicts each case on the preprocessed grid and returns ``score``, the mean Dice over foreground
    classes and cases, novel classes left out, and the mean Dice of each class (``<class>``, or
    ``<dataset>/<class>`` for several datasets). The cases are shared among the ranks; every rank returns the
    same. The method is left in eval mode.
    """
    keys = store.role("validation")
    support = [*store.role("atlas"), *store.role("support")]
    prefixed = len(plan.learned) > 1
    novel = {f"{d.name}/{name}" if prefixed else name for d in plan.learned for name in d.novel}
    if not keys or all(set(store.plan_of(key).labels.names) <= set(store.plan_of(key).novel) for key in keys):
        return None

    def validate(method: Method) -> dict[str, float]:
        method.eval()
        own: dict[str, dict[str, float]] = {}
        for key in keys[runtime.rank :: runtime.world]:
            case, labels = store[key], store.plan_of(key).labels
            examples = [store[name] for name in support if name.startswith(f"{case.dataset}/")]
            with runtime.autocast():
                predictor = method.predictor(case, examples)
            predicted = predict_classes(
                predictor,
                case,
                labels,
                patch_size=plan.patch_size,
                device=runtime.device,
                autocast=runtime.autocast,
            )
            prefix = f"{case.dataset}/" if prefixed else ""
            dice = class_dice(predicted, case.label(), labels)
            own[key] = {prefix + name: value for name, value in dice.items()}
        found = {key: dice for part in runtime.gather(own) for key, dice in part.items()}
        return _summarise([found[key] for key in keys], leaves_out=novel)

    return validate


def class_dice(
    predicted: npt.NDArray[np.integer], truth: npt.NDArray[np.integer], labels: LabelSpace
) -> dict[str, float]:
    """Return the Dice of each foreground class between two maps of codes.

    A class in neither map gives NaN (it says nothing), in only one of them 0. Voxels without annotation do
    not count.
    """
    table = labels.membership()
    number = table.shape[1]
    counts = np.zeros(number**2, dtype=np.int64)
    for true, found in zip(truth, predicted, strict=True):  # by slices: indices take 8 bytes per voxel
        annotated = true != IGNORE
        pairs = true[annotated].astype(np.int64) * number + found[annotated]
        counts += np.bincount(pairs, minlength=number**2)
    counts = counts.reshape(number, number)
    outputs = table[1:] if labels.is_exclusive else table
    dice = {}
    for name, members in zip(labels.names, outputs, strict=True):
        overlap = counts[np.ix_(members, members)].sum()
        both = counts[members].sum() + counts[:, members].sum()
        dice[name] = float(2 * overlap / both) if both else float("nan")
    return dice


def _summarise(cases: list[dict[str, float]], *, leaves_out: Collection[str] = ()) -> dict[str, float]:
    """Average over cases; classes that are left out are reported, and choose no checkpoint."""
    names = sorted({name for dice in cases for name in dice})
    values = {name: [dice[name] for dice in cases if not np.isnan(dice.get(name, np.nan))] for name in names}
    means = {name: float(np.mean(found)) for name, found in values.items() if found}
    per_case = [
        [value for name, value in dice.items() if name not in leaves_out and not np.isnan(value)]
        for dice in cases
    ]
    scores = [float(np.mean(found)) for found in per_case if found]
    return {"score": float(np.mean(scores)) if scores else 0.0, **means}
