"""The chapter of the documentation about datasets, kept equal to the cards: ``python -m
dataset_conversion.overview``.
"""

from collections.abc import Iterable
from pathlib import Path

from dataset_conversion import find, names
from dataset_conversion.card import Card
from medplan.records import write_text

__all__ = ["CHAPTER", "chapter"]

CHAPTER = Path(__file__).parents[1] / "docs" / "datasets.md"
BEGIN = "<!-- from the cards: begin -->"
END = "<!-- from the cards: end -->"


def chapter(text: str) -> str:
    """Return the chapter with everything between its two marks written anew from the cards."""
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    cards = {name: find(name).CARD for name in names()}
    parts = [_table(cards), *(_entry(name, card) for name, card in cards.items())]
    return f"{head}{BEGIN}\n\n" + "\n\n".join(parts) + f"\n\n{END}{tail}"


def _table(cards: dict[str, Card]) -> str:
    rows = ["| converter | dataset | modality | labels | cases | for |", "|---|---|---|---|---|---|"]
    for name, card in cards.items():
        labels = f"{len(card.labels)}" if card.labels else "-"
        cells = (
            f"[`{name}`](#{name})",
            card.title,
            card.modality,
            labels,
            card.num_cases,
            (", ").join(card.serves),
        )
        rows.append("| " + " | ".join(cell.replace("|", "or") for cell in cells) + " |")
    return "\n".join(rows)


def _entry(name: str, card: Card) -> str:
    lines = [f"### {name}", "", f"**{card.title}.** {card.about}", ""]
    lines += [f"* From: {card.home}. Licence: {card.licence}."]
    lines += [f"* Source: {_escaped(layout)}." for layout in card.layout]
    channels = _listed(card.channels) or "as the source says"
    lines += [f"* Becomes `{card.name}`: channels {channels}; {_labels(card)}."]
    lines += [f"* Splits: {_escaped(card.split)}"]
    if card.published_splits:
        lines += [f"* Published splits, written into dataset.json: {_listed(card.published_splits)}."]
    if card.label_groups:
        lines += [f"* Fewer classes, as in papers: `--label-groups` {_listed(card.label_groups)}."]
    return "\n".join(lines)


def _labels(card: Card) -> str:
    if not card.labels:
        return "labels as the source names them, or none"
    return "labels " + ", ".join(f"{value} {name}" for name, value in card.labels.items())


def _listed(words: Iterable[str]) -> str:
    return ", ".join(f"`{word}`" for word in words)


def _escaped(text: str) -> str:
    return text.replace("*", "\\*").replace("<", "&lt;")


if __name__ == "__main__":
    write_text(chapter(CHAPTER.read_text()), CHAPTER)
