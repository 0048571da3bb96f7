"""The structure: modules import downwards only, and heavy packages stay where they belong."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "medplan"
FLOORS = [
    {"errors", "locks", "records", "randomness", "progress", "workspace", "weights", "machine", "runtime"},
    {"data"},
    {"plan", "preprocess", "samples", "networks", "learning", "method", "checkpoint"},
    {"methods", "predict", "evaluate", "registry"},
    {"train"},
    {"commands", "cli", "__main__", "flags"},
]
MODULES = sorted(PACKAGE.rglob("*.py"))


def imports_of(path: Path) -> Iterator[str]:
    """Yield what a file imports when it runs; imports for the type checker alone do not count."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "medplan" and len(parts) > 1 else None


def floor_of(room: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


def identify(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


@pytest.mark.parametrize(
    "path", [m for m in MODULES if m.parent != PACKAGE or m.stem != "__init__"], ids=identify
)
def test_modules_import_only_from_their_floor_or_below(path: Path) -> None:
    own = path.relative_to(PACKAGE).with_suffix("").parts[0]
    rooms = {room for name in imports_of(path) if (room := room_of(name)) and any(room in f for f in FLOORS)}
    above = sorted(room for room in rooms if floor_of(room) > floor_of(own))
    beside = sorted(room for room in rooms if own == "methods" and room in ("predict", "evaluate"))
    assert not above, f"{own} imports from above: {above}"
    assert not beside, f"methods know nothing of {beside}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "methods").glob("[a-z]*.py")), ids=identify)
def test_methods_do_not_import_each_other(path: Path) -> None:
    others = {other.stem for other in path.parent.glob("[a-z]*.py")} - {path.stem}
    assert not {name for name in imports_of(path) if name.split(".")[-1] in others and ".methods" in name}


def test_files_have_one_purpose_and_fit_in_the_head() -> None:
    files = [
        path for room in ("medplan", "dataset_conversion", "tests") for path in (ROOT / room).rglob("*.py")
    ]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in files}
    assert not {name: length for name, length in lengths.items() if length > 400}


def test_the_checks_of_a_clean_checkout_run_the_tests_as_the_readme_says() -> None:
    command = re.search(r"```bash\n(.*&& pytest)\n```", (ROOT / "README.md").read_text())
    assert command is not None
    assert set(command[1].split(" && ")) <= set((ROOT / ".ci" / "run").read_text().splitlines())


@pytest.mark.parametrize("word", ["torch.save", "torch.load"])
def test_only_checkpoint_reads_and_writes_weights(word: str) -> None:
    assert [identify(path) for path in MODULES if f"{word}(" in path.read_text()] == ["checkpoint.py"]


@pytest.mark.parametrize("word", ["torch.cuda", "torch.distributed", "os.environ"])
def test_only_the_runtime_knows_the_machine(word: str) -> None:
    readers = {"machine.py", "workspace.py", "weights.py"} if word == "os.environ" else set()
    allowed = {"runtime.py", *readers}
    assert {identify(path) for path in MODULES if word in path.read_text()} <= allowed


LIGHT = [
    "medplan",
    "medplan.cli",
    "medplan.plan.fingerprint",
    "medplan.data.dataset",
    "medplan.machine",
    "medplan.evaluate.metrics",
]


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_do_not_import_torch(module: str) -> None:
    program = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
