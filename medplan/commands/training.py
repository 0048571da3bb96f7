"""The verb train."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from medplan.commands.trained import read_fold, read_plan
from medplan.errors import MedplanError, PlanError, UsageError
from medplan.workspace import Workspace

if TYPE_CHECKING:
    from medplan.method import Method
    from medplan.plan.overrides import Overrides
    from medplan.plan.schema import Fold, Plan
    from medplan.runtime import Precision, Runtime
    from medplan.samples.cases import CaseStore

__all__ = ["train"]


def train(
    *,
    dataset: str,
    method: str | None,
    fold: str,
    run: str,
    minutes: float | None,
    overrides: "Overrides",
    restart: bool,
    start_from: Path | None,
    compile_network: bool,
    track: Sequence[str],
    workers: int | None,
    device: str,
    precision: "Precision",
    workspace: Path | None,
) -> None:
    """Train a method, or go on where the run stopped, and evaluate it on the validation cases."""
    from medplan.predict.folder import keep_for_prediction
    from medplan.runtime import Runtime
    from medplan.train.budget import lasting
    from medplan.train.final import evaluate_run
    from medplan.train.loop import train as run_loop
    from medplan.train.validate import make_validator

    if minutes is not None and (minutes <= 0 or overrides.iterations is not None):
        raise UsageError("--minutes should be a positive number, and given without --iters.")
    space = Workspace.open(workspace)
    runtime = Runtime.choose(device, precision=precision, joins=True)
    plan = _with_numbers(_find_plan(space, dataset, method, start_from), overrides)
    chosen = read_fold(fold)
    folder = space.run_folder(plan.name, plan.method, run) / f"fold_{chosen}"
    resume = not restart and (folder / "last.pt").is_file()
    if minutes is not None and resume:
        plan = _as_long_as(folder / "plan.json", plan)
    _check_memory(plan, runtime)
    trained = _build(plan, start_from, resume=resume)
    cases = _preprocessed_folders(space, plan)
    store = _open_store(space, plan, chosen, cases, runtime=runtime, workers=workers)
    if minutes is not None and not resume:
        plan = lasting(minutes, plan, trained, store, runtime=runtime, workers=workers)
        trained = _build(plan, start_from, resume=False)
    if runtime.is_main:
        keep_for_prediction(store, cases, folder)
        _tell_of_new_cases(space, plan)
        verb = "Resuming" if resume else "Training"
        print(f"{verb} {plan.method} on {plan.name}, {runtime.describe()}: {folder}", flush=True)
    run_loop(
        trained,
        plan,
        store,
        folder,
        fold=chosen,
        runtime=runtime,
        validate=make_validator(plan, store, runtime=runtime),
        workers=workers,
        resume=resume,
        compile=compile_network,
        track=track,
    )
    # All ranks leave together: while the first evaluates, the others would wait for it, or end under it.
    runtime.close()
    if runtime.is_main:
        for summary in evaluate_run(folder, plan, chosen, raw_folder=space.raw_folder, runtime=runtime):
            print(f"Validation: {_scores(summary)}  [{summary}]")
        print(f"Model: {folder.parent} ('medplan report' shows it, 'medplan predict' uses it)")


def _scores(path: Path) -> str:
    """Return the mean Dice of an evaluation in words, with that of each class where they are few."""
    from medplan.evaluate.sections import counted
    from medplan.evaluate.summary import read_summary

    summary = read_summary(path)
    each = [
        f"{name} {dice:.3f}"
        for name, dice in zip(summary.class_names, summary.class_mean("dice"), strict=True)
    ]
    classes = f" ({', '.join(each)})" if 1 < len(each) <= 6 else ""
    cases = counted(len(summary.cases), "case")
    return f"{path.parent.name}: mean Dice {summary.mean():.3f}{classes} over {cases}"


def _tell_of_new_cases(space: Workspace, plan: "Plan") -> None:
    """Say so if the dataset has changed after the plan, which training does not know of."""
    from medplan.commands.planning import have_changed

    for dataset in plan.datasets:
        try:
            changed = have_changed(space, dataset.name)
        except MedplanError:  # the raw data need not be on the machine that trains
            continue
        if changed:
            print(
                f"The cases or the dataset.json of '{dataset.name}' have changed since they were measured; "
                f"'medplan plan_and_preprocess -d {dataset.name} -m {plan.method}' takes the change in."
            )


def _find_plan(space: Workspace, dataset: str, method: str | None, start_from: Path | None) -> "Plan":
    """Return the plan of the dataset for the method, making it first if there is none."""
    from medplan import registry
    from medplan.commands.planning import load_plan, plan
    from medplan.plan.overrides import Overrides

    if method is not None:
        registry.find(method)  # an unknown method is an error before anything is measured
    name, wanted = space.plan_name(dataset), registry.names() if method is None else (method,)
    if not any(space.plan_path(name, each).is_file() for each in wanted):
        print(f"There is no plan{f' for {method}' if method else ''} yet; planning first.")
        overrides = Overrides(like=None if start_from is None else read_plan(start_from))
        plan(datasets=[dataset], method=method, overrides=overrides, workspace=space.root)
    return load_plan(space, dataset, method)


def _with_numbers(plan: "Plan", overrides: "Overrides") -> "Plan":
    """Return the plan with the numbers that the command line gives for this run.

    Raises: PlanError if the network cannot take the patch.
    """
    from medplan import registry
    from medplan.plan.overrides import apply_settings, voxels_of

    numbers = {
        "training.iterations": overrides.iterations,
        "training.batch_size": overrides.batch_size,
        "training.lr": overrides.lr,
        "training.seed": overrides.seed,
        "patch_size": overrides.patch_size and voxels_of(overrides.patch_size, dims=plan.dims),
    }
    plan = apply_settings(plan, {key: value for key, value in numbers.items() if value is not None})
    if overrides.iterations is not None:
        plan = replace(plan, training=plan.training.of_length(overrides.iterations))
    method = registry.find(plan.method)
    plan = apply_settings(plan, overrides.settings, method.Config)
    step = method.needs.patch_multiple
    if any(side % step for side in plan.patch_size[3 - plan.dims :]):
        raise PlanError(
            f"--patch-size: {plan.method} takes multiples of {step}, found {plan.patch_size} (z y x)."
        )
    return plan


def _check_memory(plan: "Plan", runtime: "Runtime") -> None:
    """Refuse a training on the processor that the system would kill; a GPU says itself that it is full."""
    from medplan import registry
    from medplan.machine import host_memory
    from medplan.plan.memory import measure

    free = host_memory()
    if runtime.device.type != "cpu" or free is None:
        return
    # Measured again: the figure in the plan knows nothing of what was changed in it since.
    needed = measure(registry.find(plan.method), plan).total
    if needed > free:
        raise PlanError(
            f"A training step of this plan takes about {needed / 2**30:.1f} GB, but {free / 2**30:.1f} GB of "
            "this machine's memory are free. Plan again with '--gpu-memory 1', which suits a processor, or "
            "give a smaller --batch-size or --patch-size."
        )


def _as_long_as(earlier: Path, plan: "Plan") -> "Plan":
    """Return the plan with the length of training that a run has been given before."""
    from medplan.plan.schema import Plan
    from medplan.records import read_json

    former = vars(read_json(Plan, earlier).training)
    length = {key: former[key] for key in ("iterations", "validate_every", "checkpoint_every")}
    return replace(plan, training=replace(plan.training, **length))


def _preprocessed_folders(space: Workspace, plan: "Plan") -> dict[str, Path]:
    return {
        dataset.name: space.preprocessed_folder(dataset.name, dataset.preprocessed_name(plan.grid))
        for dataset in plan.datasets
    }


def _open_store(
    space: Workspace,
    plan: "Plan",
    fold: "Fold",
    folders: Mapping[str, Path],
    *,
    runtime: "Runtime",
    workers: int | None,
) -> "CaseStore":
    """Open the preprocessed cases, preparing them first if some are missing."""
    from medplan.commands.planning import prepare_cases
    from medplan.samples.cases import CaseStore

    plan.roles(fold)  # a fold that is not there is an error of its own
    if runtime.is_main:
        try:
            CaseStore(folders, plan, fold)
        except PlanError:
            print("Some cases are not preprocessed yet; doing that first.")
            prepare_cases(space, plan, workers=workers)
    runtime.largest(0)  # the other ranks wait here until the cases are there
    return CaseStore(folders, plan, fold)


def _build(plan: "Plan", start_from: Path | None, *, resume: bool) -> "Method":
    """Return the method, with the weights it starts from; what is drawn of them depends on the seed alone."""
    import torch

    from medplan import checkpoint, registry, weights
    from medplan.predict.folder import find_folds
    from medplan.randomness import fold_in

    torch.manual_seed(fold_in(plan.training.seed, "weights"))
    method = registry.find(plan.method)(plan)
    if resume:
        return method
    if start_from is not None:
        source = find_folds(start_from)[0].checkpoint
        state = checkpoint.load(source)
        method.start_from(state["weights"], checkpoint.plan_of(state, path=source), where=str(source))
    elif plan.encoder_weights not in (None, "none"):
        files = map(checkpoint.load_published, weights.locate_all(str(plan.encoder_weights)))
        method.load_encoder({name: tensor for file in files for name, tensor in file.items()})
    return method
