"""Preprocess a dataset: many cases at once, each resumable, never more in memory than there are workers."""

import hashlib
import json
import logging
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path

from medplan.data.dataset import Dataset
from medplan.data.images import read_image, read_label
from medplan.data.rawcase import RawCase, files_of
from medplan.errors import DataError, MedplanError
from medplan.locks import try_lock
from medplan.plan.schema import DatasetPlan, Grid
from medplan.preprocess.atlas import Atlas, atlas_path
from medplan.preprocess.extra import make
from medplan.preprocess.prepare import make_atlas, prepare
from medplan.preprocess.storage import read_record, write_case, write_extra
from medplan.progress import track
from medplan.records import encode
from medplan.samples.cases import CaseFiles, open_case

__all__ = ["preprocess"]

Sources = dict[str, tuple[int, int, str]]

VERSION = 4
"""Raised whenever the same input would be preprocessed to other values."""

logger = logging.getLogger(__name__)


def preprocess(
    dataset: Dataset,
    plan: DatasetPlan,
    grid: Grid,
    folder: Path,
    *,
    workers: int,
    atlas: Atlas | None = None,
) -> Atlas | None:
    """Preprocess every case of a dataset into a folder; cases that are there already are left as they are.

    A case is done again when its files, the grid, the normalisation or the labels have changed. Interrupting
    at any point and starting again gives the same bytes as a run without interruption. Threads share the
    work, since reading, matrix products and compression run outside Python's lock; torch is not needed.

    Args:
        dataset: training cases are preprocessed, and those test cases that a fold of the plan names, unless
            a training case has that name.
        plan: of that dataset.
        folder: made if it is not there.
        workers: cases at a time.
        atlas: of another dataset, where that is what `grid.align_to` names.

    Returns: the atlas that cases were aligned to, if any.

    Raises: DataError listing every case that failed and why, after all others are done.
    """
    folder.mkdir(parents=True, exist_ok=True)
    named = {case for roles in plan.folds for ids in roles.values() for case in ids}
    tested = {case.id: case for case in dataset.test_cases if case.id in named}
    cases = list((tested | {case.id: case for case in dataset.cases}).values())
    workers = max(1, min(workers, len(cases)))
    failed: dict[str, str] = {}
    with _alone(folder):
        atlas = _atlas(dataset, plan, grid, folder) if atlas is None else atlas
        facts = _facts(plan, grid)
        if atlas is not None:
            facts += hashlib.blake2b(atlas.volume.tobytes()).hexdigest()
        pool = ThreadPoolExecutor(workers, "preprocess")
        try:
            futures = {pool.submit(_case, case, plan, grid, folder, facts, atlas): case.id for case in cases}
            for done in track(as_completed(futures), label=f"preprocessing {plan.name}", total=len(futures)):
                # One bad case must not cost the others; it is reported with all the rest at the end.
                error = done.exception()
                if error is not None:
                    known = isinstance(error, MedplanError)
                    reason = str(error) if known else f"{type(error).__name__}: {error}"
                    failed[futures[done]] = reason
        finally:
            pool.shutdown(cancel_futures=True)
    if failed:
        listed = "\n".join(f"  {case}: {reason}" for case, reason in sorted(failed.items()))
        raise DataError(
            f"{len(failed)} of {len(cases)} cases of '{plan.name}' could not be preprocessed; the others are "
            "done. Correct them, or list them under 'exclude' in dataset.json, and run the same command "
            f"again:\n{listed}"
        )
    return atlas


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other process prepares cases in a folder: folds are often started all at once."""
    with folder.with_name(f".{folder.name}.lock").open("a") as file:
        if not try_lock(file.fileno()):
            logger.info("Another process is preparing the cases in %s; waiting for it.", folder)
            while not try_lock(file.fileno()):
                time.sleep(0.2)
        yield


def _case(
    case: RawCase, plan: DatasetPlan, grid: Grid, folder: Path, facts: str, atlas: Atlas | None
) -> None:
    record = read_record(folder, case.id)
    sources = _sources(case, {} if record is None else record.sources)
    digest = hashlib.blake2b(digest_size=16)
    digest.update(facts.encode())
    for name, (_, _, content) in sorted(sources.items()):
        digest.update(f"{name} {content}".encode())
    if record is not None and record.digest == digest.hexdigest():
        _make_extra(case, plan, folder)
        return
    image = read_image(case.images, channels=len(plan.channels), dtype=None)
    label = None if case.label is None else read_label(case.label)[0]
    key = f"{plan.name}/{case.id}"
    prepared, restoration = prepare(image, plan, grid, label=label, key=key, atlas=atlas)
    del image, label
    write_case(folder, prepared, restoration, digest=digest.hexdigest(), sources=sources)
    del prepared
    _make_extra(case, plan, folder)


def _make_extra(case: RawCase, plan: DatasetPlan, folder: Path) -> None:
    """Add the extra volumes that are not there; a case that is written anew loses them all."""
    for name, numbers in plan.extra.items():
        path = CaseFiles(folder, case.id).extra(name, numbers)
        if not path.is_file():
            prepared = open_case(folder, f"{plan.name}/{case.id}")
            write_extra(path, make(name, prepared, numbers))


def _atlas(dataset: Dataset, plan: DatasetPlan, grid: Grid, folder: Path) -> Atlas | None:
    """Return the case that all others are aligned to, kept beside them since prediction needs it too."""
    if grid.align_to is None:
        return None
    case = dataset.case(grid.align_to)
    atlas = make_atlas(read_image(case.images, channels=len(plan.channels)), plan, grid)
    atlas.save(atlas_path(folder))
    return Atlas.load(atlas_path(folder))


def _facts(plan: DatasetPlan, grid: Grid) -> str:
    facts = [VERSION, grid, plan.name, plan.channels, plan.modalities, plan.normalisations, plan.labels]
    return json.dumps(encode(facts), sort_keys=True)


def _sources(case: RawCase, known: Sources) -> Sources:
    """Return size, time of change and digest of each source file; a file that looks unchanged is not read."""
    paths = {f"image{number}": path for number, path in enumerate(case.images)}
    if case.label is not None:
        paths["label"] = case.label
    sources: Sources = {}
    for name, path in paths.items():
        files = files_of(path)
        try:
            stats = [file.stat() for file in files]
        except FileNotFoundError as error:
            raise DataError(f"{error.filename}: there is no such file.") from None
        size, changed = sum(one.st_size for one in stats), max((one.st_mtime_ns for one in stats), default=0)
        before = known.get(name)
        content = before[2] if before is not None and before[:2] == (size, changed) else _digest(files)
        sources[name] = (size, changed, content)
    return sources


def _digest(files: list[Path]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        with open(file, "rb", buffering=0) as stream:
            while part := stream.read(2**22):
                digest.update(part)
    return digest.hexdigest()
