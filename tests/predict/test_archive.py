import json
import stat
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from medplan import checkpoint
from medplan.data.labels import LabelSpace
from medplan.errors import CheckpointError
from medplan.plan.schema import DatasetPlan, Grid, Normalisation, Plan, Training
from medplan.predict import archive, postprocess
from medplan.predict.archive import export, install
from medplan.predict.folder import find_folds, read_support, write_support
from medplan.predict.postprocess import Postprocessing
from medplan.samples.cases import Case
from medplan.workspace import Workspace

PLAN = Plan(
    name="Phantom",
    method="toy",
    dims=3,
    datasets=(
        DatasetPlan(
            name="Phantom",
            channels=("T1",),
            modalities=("MR",),
            labels=LabelSpace(names=("liver",), values=((1,),)),
            normalisations=(Normalisation(scheme="zscore"),),
            folds=({"labelled": ("a",)},),
        ),
    ),
    grid=Grid(spacing_mm=(1.5, 1.5, 1.5)),
    patch_size=(8, 8, 8),
    encoder="unet",
    training=Training(iterations=10, batch_size=2, lr=0.01),
)
Change = Callable[[dict[str, bytes], dict[str, object]], None]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "results" / "Phantom" / "toy" / "default"
    network = torch.nn.Conv3d(1, 2, 3)
    for fold in (0, 2):
        where = folder / f"fold_{fold}"
        facts = {"fold": fold, "step": 10, "score": 0.5}
        checkpoint.save_weights(where / "best.pt", network, PLAN, **facts)
        momentum = {"momentum": torch.zeros(10**6)}
        checkpoint.save_run_state(where / "last.pt", network, PLAN, **facts, training=momentum)
    pixels = np.random.default_rng(0).standard_normal((1, 4, 5, 6)).astype(np.float32)
    case = Case(
        key="Phantom/a",
        pixels=pixels,
        codes=(pixels[0] > 0).astype(np.int16),
        spacing_mm=(1.5, 1.5, 1.5),
        extra={"edges": pixels[0]},
    )
    write_support([case], folder / "fold_0")
    postprocess.write(Postprocessing(largest_of=("liver",)), folder)
    return folder


@pytest.fixture
def other(tmp_path: Path) -> Workspace:
    (tmp_path / "other").mkdir()
    return Workspace.open(tmp_path / "other")


def rewritten(source: Path, target: Path, change: Change) -> Path:
    """Copy an archive after changing its files and its manifest."""
    with zipfile.ZipFile(source) as packed:
        files = {name: packed.read(name) for name in packed.namelist()}
    manifest = json.loads(files.pop("manifest.json"))
    change(files, manifest)
    with zipfile.ZipFile(target, "w") as packed:
        for name, content in {**files, "manifest.json": json.dumps(manifest).encode()}.items():
            packed.writestr(name, content)
    return target


def test_installing_gives_back_the_run_without_optimiser_state(
    run: Path, other: Workspace, tmp_path: Path
) -> None:
    packed = export(run, tmp_path / "model.zip", checkpoint="last")
    assert packed.stat().st_size < 100_000
    installed = install(packed, other)
    assert installed == other.run_folder("Phantom", "toy", "default")
    folds = find_folds(installed, checkpoint="last")
    assert [fold.fold for fold in folds] == [0, 2]
    for fold in folds:
        before = checkpoint.load(run / f"fold_{fold.fold}" / "last.pt")
        after = checkpoint.load(fold.checkpoint)
        assert "training" not in after and after["step"] == 10
        assert all(torch.equal(after["weights"][key], value) for key, value in before["weights"].items())
        assert checkpoint.plan_of(after, path=fold.checkpoint) == PLAN
    assert postprocess.read(installed) == postprocess.read(run)


def test_support_cases_travel_with_the_model(run: Path, other: Workspace, tmp_path: Path) -> None:
    installed = install(export(run, tmp_path / "model.zip"), other)
    (before,), (after,) = read_support(run / "fold_0"), read_support(installed / "fold_0")
    assert after.key == before.key == "Phantom/a" and after.spacing_mm == (1.5, 1.5, 1.5)
    np.testing.assert_array_equal(after.pixels, before.pixels)
    np.testing.assert_array_equal(after.codes, before.codes)
    np.testing.assert_array_equal(after.extra["edges"], before.extra["edges"])
    assert set(after.locations) == {0, 1} and (after.codes[tuple(after.locations[1].T)] == 1).all()
    assert read_support(installed / "fold_2") == ()


def test_the_same_run_gives_the_same_bytes(run: Path, tmp_path: Path) -> None:
    first = export(run, tmp_path / "a.zip").read_bytes()
    assert export(run, tmp_path / "b.zip").read_bytes() == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip", "b.zip", "results"]


def test_one_fold_can_be_exported_by_number_or_by_folder(run: Path, other: Workspace, tmp_path: Path) -> None:
    by_number = export(run, tmp_path / "a.zip", folds=[2]).read_bytes()
    assert export(run / "fold_2", tmp_path / "b.zip").read_bytes() != b""
    assert [fold.fold for fold in find_folds(install(tmp_path / "b.zip", other))] == [2]
    assert by_number


def test_names_may_be_in_any_language(other: Workspace, tmp_path: Path) -> None:
    plan, run = replace(PLAN, name="L\u00e4sion (2)"), tmp_path / "zweiter Lauf"
    checkpoint.save_weights(
        run / "fold_0" / "best.pt", torch.nn.Conv3d(1, 2, 3), plan, fold=0, step=1, score=None
    )
    installed = install(export(run, tmp_path / "model.zip"), other)
    assert installed == other.run_folder("L\u00e4sion (2)", "toy", "zweiter Lauf")


def test_installing_over_a_run_is_refused(run: Path, other: Workspace, tmp_path: Path) -> None:
    packed = export(run, tmp_path / "model.zip")
    install(packed, other)
    with pytest.raises(CheckpointError, match="a run lies where this one belongs"):
        install(packed, other)


@pytest.mark.parametrize(
    "name",
    [
        "../evil.pt",
        "/tmp/evil.pt",
        "fold_0/../../evil.pt",
        "C:\\evil.pt",
        "a\\..\\evil.pt",
        ".evil.pt",
        "evil.py",
    ],
)
def test_an_archive_cannot_write_outside_its_folder(
    run: Path, other: Workspace, tmp_path: Path, name: str
) -> None:
    def escape(files: dict[str, bytes], manifest: dict[str, object]) -> None:
        files[name] = b"evil"
        manifest["files"][name] = {"size": 4, "sha256": "0" * 64}

    packed = rewritten(export(run, tmp_path / "good.zip"), tmp_path / "bad.zip", escape)
    with pytest.raises(CheckpointError, match="not a plain file inside the model's folder"):
        install(packed, other)
    assert not list(other.root.rglob("*evil*")) and not (tmp_path / "evil.pt").exists()
    assert not (other.root / "results").exists()


def test_a_symbolic_link_is_refused(run: Path, other: Workspace, tmp_path: Path) -> None:
    packed = export(run, tmp_path / "model.zip")
    link = zipfile.ZipInfo("fold_0/link.pt")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(packed, "a") as archive_file:
        archive_file.writestr(link, "/etc/passwd")
    with pytest.raises(CheckpointError, match="not a plain file"):
        install(packed, other)


@pytest.mark.parametrize("key", ["name", "method", "run"])
def test_a_manifest_cannot_name_a_folder_elsewhere(
    run: Path, other: Workspace, tmp_path: Path, key: str
) -> None:
    def rename(files: dict[str, bytes], manifest: dict[str, object]) -> None:
        manifest[key] = "../../elsewhere"

    packed = rewritten(export(run, tmp_path / "good.zip"), tmp_path / "bad.zip", rename)
    with pytest.raises(CheckpointError, match="not a plain name"):
        install(packed, other)


def test_a_damaged_file_is_found_and_nothing_is_left(run: Path, other: Workspace, tmp_path: Path) -> None:
    def damage(files: dict[str, bytes], manifest: dict[str, object]) -> None:
        content = bytearray(files["fold_0/best.pt"])
        content[len(content) // 2] ^= 1
        files["fold_0/best.pt"] = bytes(content)

    packed = rewritten(export(run, tmp_path / "good.zip"), tmp_path / "bad.zip", damage)
    with pytest.raises(CheckpointError, match=r"'fold_0/best\.pt' is damaged"):
        install(packed, other)
    assert [path for path in other.root.rglob("*") if path.is_file()] == []


def test_a_missing_file_is_named(run: Path, other: Workspace, tmp_path: Path) -> None:
    def lose(files: dict[str, bytes], manifest: dict[str, object]) -> None:
        del files["fold_2/best.pt"]

    packed = rewritten(export(run, tmp_path / "good.zip"), tmp_path / "bad.zip", lose)
    with pytest.raises(CheckpointError, match=r"'fold_2/best\.pt' is missing"):
        install(packed, other)


def test_a_bomb_is_refused_before_it_goes_off(
    run: Path, other: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = export(run, tmp_path / "model.zip")
    monkeypatch.setattr(archive, "MOST_BYTES", 10_000)
    with pytest.raises(CheckpointError, match="a model has at most"):
        install(packed, other)


@pytest.mark.parametrize("content", [b"", b"no zip at all", b"PK\x03\x04 cut short"])
def test_what_is_no_archive_is_said_to_be_none(other: Workspace, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.zip").write_bytes(content)
    with pytest.raises(CheckpointError, match="not a model packed by"):
        install(tmp_path / "model.zip", other)
    with pytest.raises(CheckpointError, match="There is no file"):
        install(tmp_path / "nothing.zip", other)


def test_a_zip_of_something_else_is_said_to_be_none(other: Workspace, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as packed:
        packed.writestr("holiday.jpg", b"")
    with pytest.raises(CheckpointError, match=r"not a model .* no manifest.json"):
        install(tmp_path / "photos.zip", other)


def test_missing_folds_and_checkpoints_are_named(run: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint of fold 1; trained folds: 0, 2"):
        find_folds(run, folds=[1])
    (run / "fold_0" / "last.pt").unlink()
    with pytest.raises(CheckpointError, match=r"there is no last.pt, only best.pt"):
        find_folds(run, checkpoint="last")
    with pytest.raises(CheckpointError, match="There is no run folder"):
        find_folds(run / "nowhere")
    (run / "fold_2" / "best.pt").unlink()
    assert find_folds(run)[1].checkpoint.name == "last.pt"


def test_the_fold_of_all_cases_is_taken_only_where_there_is_no_other(run: Path, tmp_path: Path) -> None:
    (run / "fold_2").rename(run / "fold_10")
    (run / "fold_all").mkdir()
    (run / "fold_all" / "best.pt").write_bytes((run / "fold_0" / "best.pt").read_bytes())
    assert [fold.fold for fold in find_folds(run)] == [0, 10]
    assert [fold.fold for fold in find_folds(run, folds=["all", 0])] == ["all", 0]
    (run / "fold_0" / "best.pt").unlink()
    (run / "fold_0" / "last.pt").unlink()
    (run / "fold_10" / "best.pt").unlink()
    (run / "fold_10" / "last.pt").unlink()
    assert [fold.fold for fold in find_folds(run)] == ["all"]


def test_the_post_processing_of_a_fold_travels_with_it(run: Path, other: Workspace, tmp_path: Path) -> None:
    record = Postprocessing(largest_foreground=True, num_cases=4)
    postprocess.write(record, run / "fold_2")
    installed = install(export(run / "fold_2", tmp_path / "model.zip"), other)
    assert postprocess.read(installed / "fold_2") == record
