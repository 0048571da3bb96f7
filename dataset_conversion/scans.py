"""A folder of one's own scans or pictures, some of them labelled, in whatever order it is.

Channels and labels are found by their names, and labels are put on the voxel grid of their scan, so that
nobody has to rename files or to write a dataset.json.
"""

import os.path
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dataset_conversion.card import Card
from dataset_conversion.listing import require
from dataset_conversion.loose.arrange import arrange
from dataset_conversion.loose.cases import volume_cases
from dataset_conversion.loose.classes import classes_of
from dataset_conversion.loose.conclusion import Conclusion
from dataset_conversion.loose.files import list_files
from dataset_conversion.loose.looks import looks_like_labels
from dataset_conversion.loose.masks import decoder_of, summary
from dataset_conversion.loose.memory import KEY, remember
from dataset_conversion.loose.names import Found, found
from dataset_conversion.loose.patients import patients_of
from dataset_conversion.loose.picture_cases import picture_cases
from dataset_conversion.writing import in_threads, write_dataset
from medplan.data.formats import PICTURE_ENDINGS, VOLUME_ENDINGS
from medplan.errors import DataError

CARD = Card(
    name="Scans",
    title="Your own scans: any folder of NIfTI, NRRD, MetaImage, DICOM or pictures, some with labels",
    about="Whatever is in the folder; a scan without a label file is an unlabelled case.",
    modality="any",
    home="your own",
    licence="your own",
    layout=(
        "scans at any depth, one file or one DICOM folder each, or pictures",
        "labels are called like their scan and have one of the words seg, segmentation, label, mask, gt, "
        "truth, annotation or roi in their name, or lie in a folder of such a name, or beside the only scan "
        "of a folder; files that hold few whole numbers in closed areas are labels whatever their name. "
        "Labels on a crop or a mirrored copy of the scan's grid are put back; where that is impossible, or "
        "the scan is missing, they are left out with a note",
        "scans whose names differ only in a word like T1, FLAIR, ADC, CT or PET, or in the numbers _0000 and "
        "_0001, are channels of one case, unless each has a label of its own. Channels that at least half of "
        "the cases have count; cases that lack one are left out with a note. Channels on other grids are "
        "resampled onto the labelled one",
        "several labels of one scan are masks of one class each, which their names say "
        "(segmentations/liver.nii.gz, p1_liver_mask.nii.gz); where they overlap, the smaller one counts",
        "masks that are pictures: 0 and 255, lossy or not; numbers; palettes; up to 40 colours",
    ),
    channels=("scan",),
    labels={},
    num_cases="any",
    serves=("sdmessenger", "bijros", "supervised"),
    split="By scan, or by patient where several scans each lie in numbered folders (p1/, sub-02/). What "
    "dataset.json says under `patient` counts, and may be corrected.",
)
PREDICTED = frozenset("pred preds predicted prediction predictions".split())


def convert(source: Path, target: Path) -> None:
    """Sort out scans, channels and labels by name; give the same command again when labels were added.

    What was put into dataset.json by hand stays: names of classes and channels, `exclude`, patients, domains.

    Raises: DataError if there are no scans, if it is not clear what several labels of a scan are, if cases
        have no channels in common, or if a label file holds other things.
    """
    listing = list_files(source)
    endings = f"{', '.join(VOLUME_ENDINGS)}, DICOM folders, or {', '.join(PICTURE_ENDINGS)}"
    if not listing.paths and listing.notes:
        raise DataError(
            f"{source}: there are no scans that can be read ({endings}): {' '.join(listing.notes[:2])}"
        )
    require(source, bool(listing.paths), f"scans ({endings})")
    notes = list(listing.notes)
    common = Path(os.path.commonpath([path.parent for path in listing.paths]))
    files = [found(path, source, depth=len(common.relative_to(source).parts)) for path in listing.paths]
    # Of pictures some look like masks; that is asked only where no name says what is one.
    if not (listing.are_pictures and any(file.is_label for file in files)):
        files = _with_labels_by_content(files, source, notes)
    require(source, not all(file.is_label for file in files), f"scans ({endings}) beside the labels")
    arrangement = arrange(files, source)
    memory = remember(target, source)
    known = dict(memory.classes) | {name: value for value, name in memory.names.items()}
    classes = classes_of(arrangement.cases, source, known)
    decoder = None
    if listing.are_pictures:
        masks = [drawn.path for files in classes.drawn.values() for drawn in files]
        seen = list(in_threads(summary, masks, label="looking at masks"))
        decoder = decoder_of(seen, memory.classes) if seen else None
        made = picture_cases(arrangement, classes, source, decoder)
    else:
        made = volume_cases(arrangement, classes, source)
    written = {case.id for case in made.cases}
    patients = patients_of([case for case in arrangement.cases if case.id in written])
    notes += [*arrangement.notes, *classes.notes, *made.notes]
    if patients and patients.items() <= {c.id: memory.patient(c.id, patients) for c in made.cases}.items():
        notes.append(
            f"folders like {min(patients.values())} are taken for patients, whose cases are learned from or "
            "validated on together; correct 'patient' in dataset.json if they are not."
        )
    words = [" ".join(channel) for channel, _ in arrangement.channels]
    words = words if len(words) == len(made.channels) else [""] * len(made.channels)
    colours = decoder.names if decoder is not None else {}
    named = dict(classes.values) | {name: value for value, name in colours.items()}
    by_name = {KEY: {"channels": words, "classes": named}}
    conclusion = Conclusion(
        arranged=arrangement.cases,
        made=made,
        classes=classes,
        colours=colours,
        memory=memory,
        source=source,
        target=target,
        notes=notes,
    )
    write_dataset(
        CARD,
        [replace(case, patient=memory.patient(case.id, patients)) for case in made.cases],
        target,
        source=source,
        labels=conclusion,
        channels=memory.channel_names(words, made.channels),
        ending=made.ending,
        more=memory.kept(written) | by_name,
    )


def _with_labels_by_content(files: Sequence[Found], source: Path, notes: list[str]) -> list[Found]:
    """Call those files labels that look like some, whatever their names; predictions are left out."""
    asked = [file for file in files if not file.is_label]
    looks = in_threads(looks_like_labels, [file.path for file in asked], label="looking at scans")
    unnamed = {file.path for file, is_label in zip(asked, looks, strict=True) if is_label}
    if unnamed:
        first = min(unnamed).relative_to(source).as_posix()
        notes.append(
            f"{len(unnamed)} file(s) hold few whole numbers in closed areas and are taken for labels, for "
            f"instance {first}."
        )
    predicted = {file.path for file in asked if file.path in unnamed and PREDICTED & set(file.words)}
    if predicted:
        first = min(predicted).relative_to(source).as_posix()
        notes.append(
            f"{len(predicted)} of them are called predictions and are left out, for instance {first}; call "
            "them labels when they are corrected."
        )
    kept = [file for file in files if file.path not in predicted]
    return [replace(file, is_label=file.is_label or file.path in unnamed) for file in kept]
