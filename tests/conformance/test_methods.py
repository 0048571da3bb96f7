"""What every method must be, whatever it computes: one test per law, over every file in medplan/methods."""

import multiprocessing
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from medplan import checkpoint, registry
from medplan.method import Method
from medplan.plan.memory import measure
from medplan.runtime import Runtime
from medplan.samples.sampling import cut
from medplan.train.loop import train
from medplan.train.run import Run
from medplan.train.validate import make_validator
from tests.conformance.tiny import CPU, build, hook, only_case, run, tiny_plan, tiny_store

NAMES = registry.names()


@pytest.fixture(scope="module")
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A whole run: its method, its plan, and a copy of last.pt after each step."""
    folder = tmp_path_factory.mktemp("whole")
    plan = tiny_plan(request.param)
    save = Run.save

    def save_and_keep(self: Run) -> None:
        save(self)
        shutil.copy(self.folder / "last.pt", self.folder / f"{self.at.total}.pt")

    Run.save = save_and_keep  # type: ignore[method-assign]
    try:
        method = run(plan, folder)
    finally:
        Run.save = save  # type: ignore[method-assign]
    yield method, plan, folder


over_methods = pytest.mark.parametrize("name", NAMES)
over_runs = pytest.mark.parametrize("trained", NAMES, indirect=True)


@over_methods
def test_the_phases_add_up_to_the_iterations_of_the_plan(name: str) -> None:
    plan = tiny_plan(name)
    phases = build(plan).phases()
    assert sum(phase.num_steps for phase in phases) == plan.training.iterations
    assert len({phase.name for phase in phases}) == len(phases)
    assert phases[-1].validate, "the last phase must be one that can predict"


@over_methods
def test_no_steps_can_be_planned_and_take_the_weights_only(name: str) -> None:
    plan = tiny_plan(name, iterations=0)
    assert [phase.num_steps for phase in build(plan).phases() if phase.num_steps] == []
    found = measure(registry.find(name), plan)
    assert (found.kept, found.largest) == (0, 0)
    assert found.fixed >= 4 * sum(parameter.numel() for parameter in build(plan).parameters())


@over_methods
def test_equal_seeds_build_equal_weights_and_the_plan_alone_decides_their_shapes(name: str) -> None:
    plan = tiny_plan(name)
    one, two = build(plan).state_dict(), build(plan).state_dict()
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


@over_runs
def test_training_stays_finite_and_moves_exactly_the_listed_parameters(trained: Any) -> None:
    method, plan, folder = trained
    may_rest = tuple(hook(plan.method, "MAY_REST", ()))
    before, total = dict(build(plan).state_dict()), 0
    for phase in method.phases():
        total += phase.num_steps
        after = checkpoint.load(folder / f"{total}.pt")["weights"]
        listed = _listed(method, phase.name)
        for name, parameter in method.named_parameters():
            assert after[name].isfinite().all(), name
            if name not in listed:
                assert torch.equal(before[name], after[name]), f"'{name}' moved in '{phase.name}', unlisted"
            elif parameter.numel() and not (may_rest and name.startswith(may_rest)):
                assert not torch.equal(before[name], after[name]), f"'{name}' did not move in '{phase.name}'"
        before = after


@over_runs
def test_resuming_at_each_step_is_exact_to_the_bit(trained: Any, tmp_path: Path) -> None:
    _, plan, folder = trained
    whole = checkpoint.load(folder / "last.pt")["weights"]
    for step in range(1, plan.training.iterations):
        target = tmp_path / str(step)
        target.mkdir()
        shutil.copy(folder / f"{step}.pt", target / "last.pt")
        run(plan, target)
        resumed = checkpoint.load(target / "last.pt")["weights"]
        different = [name for name in whole if not torch.equal(whole[name], resumed[name])]
        assert not different, f"after step {step}: {different}"
        assert (target / "last.pt").read_bytes() == (folder / "last.pt").read_bytes()


@over_runs
def test_every_tensor_that_training_changes_is_in_the_state(trained: Any) -> None:
    method, plan, _ = trained
    fresh, used = dict(_hidden_tensors(build(plan))), dict(_hidden_tensors(method))
    grown = sorted(used.keys() - fresh.keys())
    assert not grown, f"tensors kept outside of parameters and buffers: {grown}"
    changed = [name for name in fresh if not torch.equal(fresh[name], used[name])]
    assert not changed, f"changed by training, but not saved: {changed}"


@over_runs
def test_the_predictor_is_deterministic_and_does_not_look_at_the_rest_of_the_batch(trained: Any) -> None:
    method, plan, _ = trained
    store = tiny_store(plan)
    key = store.role("validation")[0]
    case, support = store[key], [store[name] for role in ("atlas", "support") for name in store.role(role)]
    room = [length - size for length, size in zip(case.shape, plan.patch_size, strict=True)]
    corners = [(0, 0, 0), (room[0], room[1], room[2]), (room[0] // 2, room[1] // 2, room[2])]
    patches = torch.stack(
        [torch.from_numpy(cut(case, corner, plan.patch_size)["image"]) for corner in corners]
    )
    method.eval()
    with torch.no_grad():
        predictor = method.predictor(case, support)
        together, again = predictor(patches, corners), method.predictor(case, support)(patches, corners)
        alone = torch.cat([predictor(patches[i : i + 1], corners[i : i + 1]) for i in range(3)])
    assert together.dtype == torch.float32
    assert together.shape == (3, store.plan_of(key).labels.num_outputs, *plan.patch_size)
    assert torch.equal(together, again)
    assert torch.allclose(together, alone, atol=1e-4)
    method.train()


@over_methods
def test_compiling_reaches_most_of_what_the_last_phase_computes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = tiny_plan(name)
    method, inside, calls = build(plan), [False], {True: 0, False: 0}

    def call(module: nn.Module, *args: Any, **options: Any) -> Any:
        inside.append(True)
        try:
            return module._call_impl(*args, **options)
        finally:
            inside.pop()

    def count(module: nn.Module, *_: Any) -> None:
        calls[inside[-1]] += bool(module._parameters)

    monkeypatch.setattr(
        nn.Module, "compile", lambda self: setattr(self, "_compiled_call_impl", partial(call, self))
    )
    last = method.phases()[-1:]
    monkeypatch.setattr(type(method), "phases", lambda self: last)
    hook_on_all = nn.modules.module.register_module_forward_pre_hook(count)
    try:
        train(method, plan, tiny_store(plan), tmp_path, fold=0, runtime=CPU, workers=0, compile=True)
    finally:
        hook_on_all.remove()
    assert calls[True] > 2 * calls[False], calls


@over_methods
def test_two_ranks_train_as_one_does_on_the_whole_batch(name: str, tmp_path: Path) -> None:
    plan = tiny_plan(name, batch_size=4)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_one_rank, args=(rank, plan, tmp_path)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    shared = checkpoint.load(tmp_path / "two" / "last.pt")["weights"]
    assert all(tensor.isfinite().all() for tensor in shared.values() if tensor.is_floating_point())
    tolerance = hook(name, "RANK_TOLERANCE", 1e-5)
    if tolerance is None:
        return
    run_without_dropout(plan, tmp_path / "one", CPU)
    alone = checkpoint.load(tmp_path / "one" / "last.pt")["weights"]
    for key, tensor in alone.items():
        assert torch.allclose(tensor, shared[key], atol=tolerance, rtol=1e-4), key


@pytest.mark.slow
@over_methods
def test_one_case_can_be_learnt_by_heart(name: str, tmp_path: Path) -> None:
    numbers = {"iterations": 400, "batch_size": 4, "checkpoint_every": 1000, **hook(name, "OVERFIT", {})}
    plan = only_case(tiny_plan(name, **numbers))
    store = tiny_store(plan, num_slices=12)
    (key,) = store.role("labelled")[:1]
    method = run(plan, tmp_path, store=store)
    looks_at = type(store)(cases=store.cases, roles={**store.roles, "validation": (key,)}, plan=plan)
    validate = make_validator(plan, looks_at, runtime=CPU)
    assert validate is not None
    with torch.no_grad():
        score = validate(method)["score"]
    assert score >= hook(name, "OVERFIT_DICE", 0.7)


def run_without_dropout(plan: Any, folder: Path, runtime: Runtime) -> None:
    """Train with every dropout layer off: what ranks draw there is not the same as what one rank draws."""
    method = build(plan)
    for module in method.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
    train(method, plan, tiny_store(plan), folder, fold=0, runtime=runtime, workers=0)


def _one_rank(rank: int, plan: Any, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    runtime = Runtime(device=torch.device("cpu"), rank=rank, world=2)
    run_without_dropout(plan, folder / "two", runtime)
    runtime.close()


def _listed(method: Method, phase: str) -> set[str]:
    listed = {
        id(parameter)
        for optimizer in method.optimizers(phase).values()
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    return {name for name, parameter in method.named_parameters() if id(parameter) in listed}


def _hidden_tensors(method: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield tensors that a module keeps outside of its state: attributes, and buffers that are not saved."""
    for path, module in method.named_modules():
        for name in module._non_persistent_buffers_set:
            buffer = module._buffers[name]
            if buffer is not None:
                yield f"{path}.{name}", buffer.clone()
        for name, value in vars(module).items():
            if name not in ("_parameters", "_buffers", "_modules"):
                yield from _tensors_in(value, f"{path}.{name}")


def _tensors_in(value: Any, path: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield path, value.detach().clone()
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _tensors_in(item, f"{path}[{key}]")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _tensors_in(item, f"{path}[{index}]")
