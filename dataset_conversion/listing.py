"""Find the files of a source folder; what is missing becomes one sentence."""

import re
from collections.abc import Mapping
from pathlib import Path

from medplan.errors import DataError

__all__ = ["by_pattern", "choose", "files_of", "folders_below", "folders_of", "pairs", "require"]


def files_of(folder: Path) -> tuple[Path, ...]:
    """Return the files in a folder, numbers in natural order, hidden files left out."""
    return _entries(folder, folders=False)


def folders_of(folder: Path) -> tuple[Path, ...]:
    """Return the folders in a folder, numbers in natural order, hidden ones left out."""
    return _entries(folder, folders=True)


def folders_below(folder: Path) -> tuple[Path, ...]:
    """Return a folder and all folders in it at any depth, sorted; linked folders too, each once."""
    seen: set[Path] = set()
    found: list[Path] = []
    waiting = [folder] if folder.is_dir() else []
    while waiting:
        current = waiting.pop()
        if current.resolve() not in seen:
            seen.add(current.resolve())
            found.append(current)
            waiting += folders_of(current)
    return tuple(sorted(found))


def by_pattern(folder: Path, pattern: str) -> dict[str, Path]:
    """Return the files whose whole name matches a regular expression, by its first group, in natural
    order.
    """
    matches = ((re.fullmatch(pattern, path.name, re.IGNORECASE), path) for path in files_of(folder))
    return {match[1]: path for match, path in matches if match}


def pairs(
    images: Mapping[str, Path], labels: Mapping[str, Path], *, where: Path
) -> dict[str, tuple[Path, Path]]:
    """Join images and labels by key. Raises: DataError naming the images without a label and the reverse."""
    alone = sorted(images.keys() ^ labels.keys())
    if alone:
        have, lack = ("image", "label") if alone[0] in images else ("label", "image")
        path = images.get(alone[0]) or labels[alone[0]]
        more = f" (and {len(alone) - 1} more)" if len(alone) > 1 else ""
        raise DataError(f"{where}: the {have} '{path.name}' has no {lack}{more}; complete the download.")
    return {key: (image, labels[key]) for key, image in images.items()}


def choose(source: Path, *candidates: str) -> Path | None:
    """Return the first of the given sub-folders (or `source` itself for ".") that exists."""
    return next((source / name for name in candidates if (source / name).is_dir()), None)


def require(source: Path, found: bool, expected: str) -> None:
    """Raise a DataError that says what was expected in `source` unless it was found."""
    if not source.is_dir():
        raise DataError(
            f"{source}: there is no such folder; name the folder that holds the downloaded dataset."
        )
    if not found:
        content = [path.name for path in sorted(source.iterdir()) if not path.name.startswith(".")]
        shown = ", ".join(content[:5]) + (", ..." if len(content) > 5 else "")
        raise DataError(f"{source}: expected {expected}; found {shown or 'an empty folder'}.")


def _entries(folder: Path, *, folders: bool) -> tuple[Path, ...]:
    if not folder.is_dir():
        return ()
    wanted = (path for path in folder.iterdir() if path.is_dir() == folders and not path.name.startswith("."))
    return tuple(sorted(wanted, key=lambda path: _natural(path.name)))


def _natural(name: str) -> tuple[tuple[str, int], ...]:
    return tuple((text, int(digits or 0)) for text, digits in re.findall(r"(\D*)(\d*)", name))
