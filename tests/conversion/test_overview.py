"""The chapter about datasets says what the cards say."""

import subprocess
import sys

import pytest

from dataset_conversion import find, names
from dataset_conversion.overview import CHAPTER, chapter
from medplan.plan.modality import NAMES


def test_chapter_equals_the_cards() -> None:
    text = CHAPTER.read_text()
    assert chapter(text) == text, "run: python -m dataset_conversion.overview"


@pytest.mark.parametrize("name", names())
def test_cards_are_complete(name: str) -> None:
    card = find(name).CARD
    assert (
        card.name and card.title and card.about and card.home and card.licence and card.split and card.layout
    )
    assert card.name.replace("-", "").isalnum() and card.name.lower() == name.replace("_", "")
    assert 0 not in card.labels.values() and len(set(card.labels.values())) == len(card.labels)
    assert find(name).convert.__doc__


@pytest.mark.parametrize("name", [n for n in names() if n not in ("msd", "radiology", "roco", "scans")])
def test_channel_names_say_what_kind_of_scan_it_is(name: str) -> None:
    for channel in find(name).CARD.channels:
        assert any(word in NAMES for word in channel.lower().split()), channel


def test_cards_are_read_without_heavy_modules() -> None:
    code = (
        "import sys; from dataset_conversion import find, names; [find(name).CARD for name in names()];"
        "print(*sorted({'torch', 'nibabel', 'SimpleITK', 'h5py', 'PIL', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=CHAPTER.parents[1]
    )
    assert done.stdout.split() == []
