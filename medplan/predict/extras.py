"""What a method says of a case besides its segmentation, written beside the label map."""

from pathlib import Path
from typing import Any

import torch

from medplan.data.formats import ending_of, stem_of
from medplan.data.images import write_image, write_label
from medplan.method import Volume
from medplan.predict.model import Model, Prepared
from medplan.preprocess.restore import LabelRestorer
from medplan.preprocess.restore_volume import restore_volume, voxels_to_mm
from medplan.records import write_json

__all__ = ["write_extras"]


def write_extras(model: Model, prepared: Prepared, label_path: Path) -> list[Path]:
    """Ask the first fold's method; write ``CASE_<name>.<ending>`` and figures as ``CASE_extras.json``.

    Volumes are on the input's own grid.

    Args:
        label_path: of the case's label map, which gives folder, name and format.
    """
    ending, stem = ending_of(label_path), stem_of(label_path)
    figures: dict[str, Any] = {}
    files = []
    for name, value in model.extras(prepared.case).items():
        if not isinstance(value, Volume):
            figures[name] = value
            continue
        path = label_path.with_name(f"{stem}_{name}{ending}")
        restoration, geometry = prepared.restoration, prepared.geometry
        if value.kind == "logits":
            restorer = LabelRestorer(restoration, model.dataset.labels)
            restorer.add(torch.from_numpy(value.array))
            label = model.dataset.labels.decode(restorer.finish().classes)
            files.append(write_label(path, label, geometry))
            continue
        array = value.array
        if value.kind == "displacement":
            array = voxels_to_mm(array, restoration)
        files.append(write_image(path, restore_volume(array, restoration), geometry))
    if figures:
        files.append(write_json(figures, label_path.with_name(f"{stem}_extras.json")))
    return files
