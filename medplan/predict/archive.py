"""A trained model as one zip: weights without optimiser state, plan, post-processing, support cases, and a
manifest with the sha256 of every file.

An archive comes from elsewhere and is not trusted: only files that its manifest lists, with the sizes and
digests stated there, are unpacked, under plain relative names, into a new folder; weights are read as tensors
only.
"""

import hashlib
import json
import re
import shutil
import stat
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Literal

from medplan import __version__
from medplan import checkpoint as checkpoints
from medplan.errors import CheckpointError, PlanError
from medplan.plan.schema import Fold, Plan
from medplan.predict import postprocess
from medplan.predict.folder import SUPPORT, FoldFolder, find_folds
from medplan.preprocess.atlas import atlas_path
from medplan.records import decode, encode, write_json
from medplan.workspace import Workspace

__all__ = ["Manifest", "export", "install", "opened", "unpack"]

MANIFEST = "manifest.json"
FORMAT = 1
MOST_BYTES = 64 * 2**30
MOST_FILES = 10_000
MOST_MANIFEST_BYTES = 16 * 2**20
NAME = re.compile(r'\w[^/\\:*?"<>|\x00-\x1f]{0,127}')
"""Of a file or a folder: in any language, on any system, and never hidden or elsewhere."""
SUFFIXES = (".pt", ".json", ".npz", ".nrrd")
EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, kw_only=True)
class PackedFile:
    """Size in bytes and sha256 of a file in the archive."""

    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What an archive says of itself: where it belongs, and every file in it."""

    format: int
    name: str
    method: str
    run: str
    folds: tuple[Fold, ...]
    checkpoint: str
    made_with: str
    files: dict[str, PackedFile]


def export(
    run: Path,
    target: Path,
    *,
    folds: Sequence[Fold] | None = None,
    checkpoint: Literal["best", "last"] = "best",
) -> Path:
    """Pack a run folder into a zip that `install` and `Model.load` read. The same run gives the same bytes.

    Raises: CheckpointError if a fold has no such checkpoint.
    """
    run = run.resolve()
    chosen = find_folds(run, folds=folds, checkpoint=checkpoint)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".export-") as scratch:
        temporary = Path(scratch) / "archive"
        with zipfile.ZipFile(temporary, "w") as archive:
            plan, contents = _contents(run, chosen, Path(scratch))
            packed = {name: _pack(archive, name, path) for name, path in contents.items()}
            manifest = Manifest(
                format=FORMAT,
                name=plan.name,
                method=plan.method,
                run=run.parent.name if run == chosen[0].folder else run.name,
                folds=tuple(fold.fold for fold in chosen),
                checkpoint=checkpoint,
                made_with=f"medplan {__version__}",
                files=packed,
            )
            archive.writestr(_entry(MANIFEST), json.dumps(encode(manifest), indent=1) + "\n")
        temporary.replace(target)
    return target


def install(archive: Path, workspace: Workspace) -> Path:
    """Unpack an archive into the workspace's results and return the run folder.

    Raises: CheckpointError if the archive is not one of ours, is damaged, names anything outside its folder,
        or if another run lies where it belongs.
    """
    manifest = read_manifest(archive)
    folder = workspace.run_folder(manifest.name, manifest.method, manifest.run)
    if folder.exists():
        raise CheckpointError(
            f"{archive}: a run lies where this one belongs ({folder}). Move it away, or use the archive as "
            "it is with --model."
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".install-") as scratch:
        unpack(archive, Path(scratch) / "run").rename(folder)
    return folder


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack an archive into a new folder and return that. Raises CheckpointError as `install` does."""
    manifest = read_manifest(archive)
    needed = sum(file.size for file in manifest.files.values())
    folder.mkdir(parents=True)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise CheckpointError(
            f"{archive}: needs {needed / 1e9:.1f} GB, only {free / 1e9:.1f} GB are free in {folder}."
        )
    try:
        with zipfile.ZipFile(archive) as packed:
            for name, file in manifest.files.items():
                target = folder.joinpath(*PurePosixPath(name).parts)
                target.parent.mkdir(parents=True, exist_ok=True)
                with packed.open(name) as source, target.open("xb") as sink:
                    _copy_checked(source, sink, file, f"{archive}: '{name}'")
    except (zipfile.BadZipFile, EOFError, OSError, RuntimeError, NotImplementedError) as error:
        raise CheckpointError(f"{archive}: cannot be unpacked ({error}). Copy it again.") from None
    return folder


@contextmanager
def opened(path: Path) -> Iterator[Path]:
    """Yield the run folder at a path, or that in an archive, which is unpacked for the time being.

    Raises: CheckpointError if it is neither, or as `install` does.
    """
    if path.is_dir():
        yield path
        return
    if not zipfile.is_zipfile(path):
        raise CheckpointError(f"'{path}' is neither a run folder nor a zip made by 'medplan export'.")
    with tempfile.TemporaryDirectory(prefix="medplan-") as scratch:
        yield unpack(path, Path(scratch) / "run")


def read_manifest(archive: Path) -> Manifest:
    """Read and check what an archive says of itself, and that it holds nothing else.

    Raises: CheckpointError saying what is wrong with it.
    """
    try:
        with zipfile.ZipFile(archive) as packed:
            entries = packed.infolist()
            sizes = {entry.filename: entry.file_size for entry in entries}
            if MANIFEST not in sizes or sizes[MANIFEST] > MOST_MANIFEST_BYTES:
                raise CheckpointError(
                    f"{archive}: not a model packed by 'medplan export' (it has no {MANIFEST})."
                )
            with packed.open(MANIFEST) as file:
                text = file.read(MOST_MANIFEST_BYTES)
        manifest = decode(Manifest, json.loads(text), where=f"{archive}: {MANIFEST}")
    except FileNotFoundError:
        raise CheckpointError(f"There is no file '{archive}'.") from None
    except (zipfile.BadZipFile, ValueError, OSError, PlanError) as error:
        raise CheckpointError(f"{archive}: not a model packed by 'medplan export' ({error}).") from None
    if manifest.format != FORMAT:
        raise CheckpointError(
            f"{archive}: format {manifest.format}, this medplan reads format {FORMAT}. Update medplan."
        )
    for entry in entries:
        _check_entry(entry, manifest.files, archive)
    _check_whole(manifest, sizes, len(entries), archive)
    return manifest


def _check_entry(entry: zipfile.ZipInfo, files: Mapping[str, PackedFile], archive: Path) -> None:
    parts = entry.filename.split("/")
    plain = all(NAME.fullmatch(part) for part in parts) and len(parts) <= 4
    mode = entry.external_attr >> 16
    regular = stat.S_IFMT(mode) in (0, stat.S_IFREG)
    if not plain or not regular or not entry.filename.endswith(SUFFIXES):
        raise CheckpointError(
            f"{archive}: the entry {entry.filename!r} is not a plain file inside the model's folder; "
            "nothing was unpacked. Do not trust this archive."
        )
    if entry.filename == MANIFEST:
        return
    if entry.filename not in files or files[entry.filename].size != entry.file_size:
        raise CheckpointError(
            f"{archive}: the entry {entry.filename!r} is not as its manifest says; nothing was unpacked. "
            "Copy the archive again."
        )


def _check_whole(manifest: Manifest, sizes: Mapping[str, int], num_entries: int, archive: Path) -> None:
    for part in (manifest.name, manifest.method, manifest.run):
        if not NAME.fullmatch(part):
            raise CheckpointError(f"{archive}: {part!r} is not a plain name; do not trust this archive.")
    missing = sorted(set(manifest.files) - set(sizes))
    if missing:
        raise CheckpointError(f"{archive}: '{missing[0]}' is missing. Copy the archive again.")
    if num_entries != len(sizes) or num_entries > MOST_FILES or sum(sizes.values()) > MOST_BYTES:
        raise CheckpointError(
            f"{archive}: {num_entries} entries of {sum(sizes.values()) / 1e9:.1f} GB; a model has at most "
            f"{MOST_FILES}, each name once, of {MOST_BYTES / 1e9:.0f} GB together."
        )


def _copy_checked(source: IO[bytes], sink: IO[bytes], file: PackedFile, where: str) -> None:
    digest, written = hashlib.sha256(), 0
    while chunk := source.read(min(2**20, file.size - written + 1)):
        written += len(chunk)
        if written > file.size:
            raise CheckpointError(f"{where} is larger than its manifest says. Do not trust this archive.")
        digest.update(chunk)
        sink.write(chunk)
    if written != file.size or digest.hexdigest() != file.sha256:
        raise CheckpointError(
            f"{where} is damaged (its sha256 is not that of the manifest). Copy the archive again."
        )


def _contents(run: Path, folds: Sequence[FoldFolder], scratch: Path) -> tuple[Plan, dict[str, Path]]:
    """Return the plan of the first fold, and where the contents of each entry lie."""
    plans: list[Plan] = []
    contents: dict[str, Path] = {}
    record = run / postprocess.FILE_NAME
    if record.is_file() and run != folds[0].folder:
        contents[postprocess.FILE_NAME] = record
    for fold in folds:
        prefix = f"fold_{fold.fold}"
        state = checkpoints.load(fold.checkpoint)
        plans.append(checkpoints.plan_of(state, path=fold.checkpoint))
        lean = {key: value for key, value in state.items() if key != "training"}
        contents[f"{prefix}/{fold.checkpoint.name}"] = checkpoints.save(scratch / f"{prefix}.pt", lean)
        contents[f"{prefix}/plan.json"] = write_json(plans[-1], scratch / f"{prefix}.json")
        for path in (fold.folder / postprocess.FILE_NAME, atlas_path(fold.folder)):
            if path.is_file():
                contents[f"{prefix}/{path.name}"] = path
        for path in sorted((fold.folder / SUPPORT).glob("*.npz")):
            contents[f"{prefix}/{SUPPORT}/{path.name}"] = path
    return plans[0], contents


def _pack(archive: zipfile.ZipFile, name: str, path: Path) -> PackedFile:
    digest, size = hashlib.sha256(), 0
    # Weights do not compress; stored, they are read as fast as the disk is.
    method = zipfile.ZIP_DEFLATED if name.endswith(".json") else zipfile.ZIP_STORED
    with path.open("rb") as source, archive.open(_entry(name, method), "w", force_zip64=True) as sink:
        while chunk := source.read(2**20):
            digest.update(chunk)
            sink.write(chunk)
            size += len(chunk)
    return PackedFile(size=size, sha256=digest.hexdigest())


def _entry(name: str, method: int = zipfile.ZIP_DEFLATED) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, date_time=EPOCH)
    entry.compress_type = method
    entry.external_attr = (stat.S_IFREG | 0o644) << 16
    return entry
