"""Weight files are found by path or by name, and known ones are told apart from others."""

from pathlib import Path

import pytest

from medplan import weights
from medplan.errors import CheckpointError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEDPLAN_WEIGHTS", str(tmp_path))
    return tmp_path


def test_a_file_is_found_by_name_and_by_path(folder: Path) -> None:
    (folder / "mine.pth").write_bytes(b"1")
    assert weights.locate("mine.pth") == folder / "mine.pth"
    assert weights.locate(str(folder / "mine.pth")) == folder / "mine.pth"


def test_files_that_belong_together_are_named_with_a_plus(folder: Path) -> None:
    for name in ("sam.pth", "adapters.pth", "c+.pth"):
        (folder / name).write_bytes(b"1")
    assert weights.locate_all("sam.pth+adapters.pth") == (folder / "sam.pth", folder / "adapters.pth")
    assert weights.locate_all(str(folder / "c+.pth")) == (folder / "c+.pth",)
    with pytest.raises(CheckpointError, match=r"'other\.pth' is neither"):
        weights.locate_all("sam.pth+other.pth")


def test_a_missing_file_says_where_was_looked(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"MEDPLAN_WEIGHTS.*--encoder-weights none"):
        weights.locate("sam_vit_b_01ec64.pth")


def test_a_known_name_with_other_content_is_refused(folder: Path) -> None:
    (folder / "sam_vit_b_01ec64.pth").write_bytes(b"half a download")
    with pytest.raises(CheckpointError, match="not the published file"):
        weights.locate("sam_vit_b_01ec64.pth")


def test_the_description_names_every_known_file(folder: Path) -> None:
    text = "\n".join(weights.describe())
    assert str(folder) in text
    assert all(known.name in text and known.sha256 in text for known in weights.KNOWN)
