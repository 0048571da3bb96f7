"""Published weight files: where they are looked for, and how they are told apart.

Nothing is downloaded. A file is named in the plan (`encoder_weights`) by path, or by its name alone when it
lies in the weights folder: $MEDPLAN_WEIGHTS, else ``~/.cache/medplan/weights``. Two files that belong
together are named with a plus between them: ``sam_vit_b_01ec64.pth+model_best.pth``.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from medplan.errors import CheckpointError

__all__ = ["KNOWN", "KnownFile", "describe", "folder", "locate", "locate_all"]


@dataclass(frozen=True, kw_only=True)
class KnownFile:
    """A weight file as its authors published it."""

    name: str
    sha256: str
    what: str


KNOWN = (
    KnownFile(
        name="sam_vit_b_01ec64.pth",
        sha256="ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        what="Segment Anything ViT-B",
    ),
    KnownFile(
        name="sam_vit_l_0b3195.pth",
        sha256="3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
        what="Segment Anything ViT-L",
    ),
    KnownFile(
        name="sam_vit_h_4b8939.pth",
        sha256="a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        what="Segment Anything ViT-H",
    ),
)


def folder() -> Path:
    """Return the folder in which weight files are looked for by name."""
    return Path(os.environ.get("MEDPLAN_WEIGHTS") or Path.home() / ".cache" / "medplan" / "weights")


def locate(name: str) -> Path:
    """Find a weight file by path or by name, and check the sha256 of the files that are known.

    Raises: CheckpointError saying where was searched, or that the file is not what its name says.
    """
    candidates = [Path(name).expanduser(), folder() / name]
    path = next((candidate for candidate in candidates if candidate.is_file()), None)
    if path is None:
        raise CheckpointError(
            f"The weight file '{name}' is neither a path nor in {folder()} (MEDPLAN_WEIGHTS). Put it there, "
            "or train from random weights with '--encoder-weights none'."
        )
    expected = next((known.sha256 for known in KNOWN if known.name == path.name), None)
    if expected is not None and (found := _sha256(path)) != expected:
        raise CheckpointError(
            f"{path}: not the published file of that name (sha256 {found[:12]}..., expected "
            f"{expected[:12]}...); the download may be broken. Fetch it again."
        )
    return path


def locate_all(names: str) -> tuple[Path, ...]:
    """Find every file of ``one+another``, as `locate` does; a path that has a plus in it is one file."""
    return tuple(locate(name) for name in ([names] if Path(names).is_file() else names.split("+")))


def describe() -> list[str]:
    """Return one line on where weights are looked for and one per known file."""
    lines = [f"looked for in {folder()}" + ("" if folder().is_dir() else " (no such folder yet)")]
    for known in KNOWN:
        state = "there" if (folder() / known.name).is_file() else "not there"
        lines.append(f"{known.name} ({known.what}): {state}, sha256 {known.sha256}")
    return lines


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
