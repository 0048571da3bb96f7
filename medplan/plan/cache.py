"""What was measured of each case, kept beside the fingerprint so that unchanged files are not read again.

A file counts as unchanged when its size and modification time are the same, or else when its digest is:
BLAKE2b of its size, its first and its last 64 KiB. (An edit in the middle of an uncompressed file that keeps
the size and puts back the modification time goes unnoticed.) One line of JSON per case is appended as soon as
the case is measured, so that an interrupted run goes on where it was.
"""

import hashlib
import json
import logging
import os
import threading
from base64 import b64decode, b64encode
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medplan.data.labels import LabelSpace
from medplan.data.rawcase import RawCase, files_of
from medplan.plan.facts import CaseFacts, ClassFacts, Measured
from medplan.plan.likeness import SIDE, Thumbnail
from medplan.plan.statistics import Histogram, Intensity
from medplan.records import encode, write_text

__all__ = ["Cache", "digest_of"]

VERSION = 3
ENDS_BYTES = 1 << 16
BEGIN = '{"id": '
"""Of every line, so that the case is known without reading the rest."""

logger = logging.getLogger(__name__)

Stamp = tuple[str, int, int]
"""Path, size and modification time (ns) of a file."""


def digest_of(paths: Sequence[Path]) -> str:
    """Return BLAKE2b (128 bits) over size, first and last 64 KiB of each file."""
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            digest.update(size.to_bytes(8, "little") + stream.read(ENDS_BYTES))
            if size > ENDS_BYTES:
                stream.seek(max(ENDS_BYTES, size - ENDS_BYTES))
                digest.update(stream.read())
    return digest.hexdigest()


class Cache:
    """Measured cases of one dataset, in one file. Safe to use from several threads."""

    def __init__(self, path: Path, *, channels: Sequence[str], labels: LabelSpace) -> None:
        self.path = path
        context = json.dumps([VERSION, list(channels), encode(labels)], sort_keys=True)
        self._context = hashlib.blake2b(context.encode(), digest_size=8).hexdigest()
        self._lock = threading.Lock()
        self._lines: dict[str, str] = {}
        for line in self._stored():
            case_id, _ = json.JSONDecoder().raw_decode(line, len(BEGIN))
            self._lines[case_id] = line

    def get(self, case: RawCase) -> Measured | None:
        """Return what is known of a case if its files are unchanged."""
        line = self._lines.get(case.id)
        entry = _parsed(line) if line is not None else None
        if entry is None or entry["context"] != self._context:
            return None
        try:
            stamps = _stamps(case)
        except OSError:
            return None
        stored = [tuple(stamp) for stamp in entry["stamps"]]
        if stamps != stored:
            sizes_agree = [stamp[1] for stamp in stamps] == [stamp[1] for stamp in stored]
            if not sizes_agree or digest_of(_files(case)) != entry["digest"]:
                return None
        return _restored(entry).with_identity(case, entry["digest"])

    def put(self, case: RawCase, measured: Measured) -> Measured:
        """Remember a case; return it with its digest."""
        digest = digest_of(_files(case))
        measured = measured.with_identity(case, digest)
        entry: dict[str, Any] = {"id": case.id, "context": self._context, "digest": digest}
        entry |= {"stamps": _stamps(case), "facts": encode(measured.facts), "notes": measured.notes}
        for name in ("nonzero", "foreground"):
            parts = getattr(measured, name)
            entry[f"{name}_points"] = None if parts is None else [_points(part) for part in parts]
        if measured.thumbnail is not None:
            entry["thumbnail"] = b64encode(measured.thumbnail.tobytes()).decode()
        line = json.dumps(entry)
        with self._lock:
            self._lines[case.id] = line
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(line + "\n")
        # What the next run will read, so that both give the same fingerprint to the last digit.
        return _restored(json.loads(line))

    def tidy(self, ids: Iterable[str]) -> None:
        """Drop lines that were replaced and cases that are gone; does nothing if there are none."""
        kept = {name: line for name in sorted(ids) if (line := self._lines.get(name)) is not None}
        if list(kept.values()) != self._stored():
            write_text("".join(line + "\n" for line in kept.values()), self.path)
        self._lines = kept

    def _stored(self) -> list[str]:
        if not self.path.is_file():
            return []
        lines = self.path.read_text(encoding="utf-8").splitlines()
        whole = [line for line in lines if line.startswith(f'{BEGIN}"') and line.endswith("}")]
        if len(whole) != len(lines):
            logger.info("%s: %d incomplete lines are left out", self.path, len(lines) - len(whole))
        return whole


def _files(case: RawCase) -> list[Path]:
    """Return the files whose bytes are the case."""
    paths = [*case.images, *([case.label] if case.label is not None else [])]
    return [file for path in paths for file in files_of(path)]


def _stamps(case: RawCase) -> list[Stamp]:
    result = []
    for path in _files(case):
        status = path.stat()
        result.append((str(path), status.st_size, status.st_mtime_ns))
    return result


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError:
        return None
    return entry if isinstance(entry, dict) else None


def _points(part: Histogram) -> dict[str, Any]:
    # Nine digits give every float32 back exactly.
    return {
        "values": [float(f"{value:.9g}") for value in part.values.tolist()],
        "counts": [float(f"{count:.7g}") for count in part.counts.tolist()],
        "mean": part.mean,
        "variance": part.variance,
    }


def _restored(entry: dict[str, Any]) -> Measured:
    """Build the records directly: `records.decode` is strict but slow, and nobody edits this file by hand."""
    facts = dict(entry["facts"])
    for name in ("shape", "spacing_mm"):
        facts[name] = None if facts[name] is None else tuple(facts[name])
    for name in ("nonzero_box", "body_box"):
        facts[name] = tuple(tuple(corner) for corner in facts[name])
    facts["classes"] = {
        name: ClassFacts(
            voxels=one["voxels"],
            size_voxels=tuple(one["size_voxels"]),
            size_mm=None if one["size_mm"] is None else tuple(one["size_mm"]),
        )
        for name, one in facts["classes"].items()
    }
    histograms: dict[str, Any] = {}
    for name in ("nonzero", "foreground"):
        stored = facts[name]
        facts[name] = None if stored is None else tuple(Intensity(**one) for one in stored)
        points = entry[f"{name}_points"]
        histograms[name] = None
        if points is not None and facts[name] is not None:
            histograms[name] = tuple(
                Histogram(
                    np.array(one["values"], dtype=np.float64),
                    np.array(one["counts"], dtype=np.float64),
                    one["mean"],
                    one["variance"],
                    exact,
                )
                for one, exact in zip(points, facts[name], strict=True)
            )
    return Measured(
        facts=CaseFacts(**facts),
        nonzero=histograms["nonzero"],
        foreground=histograms["foreground"],
        notes=tuple(entry["notes"]),
        thumbnail=_thumbnail(entry["thumbnail"]) if "thumbnail" in entry else None,
    )


def _thumbnail(text: str) -> Thumbnail:
    return np.frombuffer(b64decode(text), dtype=np.float16).reshape((SIDE,) * 3)
