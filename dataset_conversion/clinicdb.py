"""CVC-ClinicDB: polyps in frames of colonoscopy videos."""

from bisect import bisect_right
from functools import partial
from pathlib import Path

from dataset_conversion.card import Card
from dataset_conversion.listing import by_pattern, choose, pairs, require
from dataset_conversion.pictures import read_mask, read_picture
from dataset_conversion.writing import Case, write_dataset

CARD = Card(
    name="ClinicDB",
    title="CVC-ClinicDB",
    about="612 frames of 384x288 from 29 colonoscopy sequences, each frame with outlined polyps.",
    modality="colour pictures (endoscopy)",
    home="polyp.grand-challenge.org/CVCClinicDB",
    licence="research use, with citation",
    layout=(
        "images/<number>.png and masks/<number>.png",
        "the original archive: Original/<number>.tif|.png and 'Ground Truth'/<number>.tif|.png, also inside "
        "PNG/ or TIF/",
    ),
    channels=("R", "G", "B"),
    labels={"polyp": 1},
    num_cases="612 frames of 29 sequences",
    serves=("imedsam",),
    split=(
        "By sequence: `patient` is the video sequence of a frame number, so that neighbouring frames never "
        "fall on both sides. The table of 29 ranges is the one in circulation and was not compared with the "
        "original release; its first four borders (frames 26, 51, 68, 79) were seen as cuts in the pictures. "
        "Sources disagree on the number of videos (25 or 29), so some sequences may show the same person."
    ),
)

_FIRST_FRAMES = (
    *(1, 26, 51, 68, 79, 104, 127, 152, 178, 200, 206, 228, 253, 278, 298),
    *(318, 343, 364, 384, 409, 429, 448, 467, 479, 504, 529, 547, 572, 592),
)


def sequence_of(frame: int) -> str:
    """Return the video sequence, ``sequence01`` to ``sequence29``, of a frame number, 1 to 612."""
    return f"sequence{bisect_right(_FIRST_FRAMES, frame):02d}"


def convert(source: Path, target: Path) -> None:
    """Write frames and thresholded masks as .png."""
    pattern = r"(\d+)\.(?:png|tif|tiff|bmp)"
    images = by_pattern(
        choose(source, "images", "Original", "PNG/Original", "TIF/Original") or source, pattern
    )
    masks = by_pattern(
        choose(source, "masks", "Ground Truth", "PNG/Ground Truth", "TIF/Ground Truth") or source, pattern
    )
    require(source, bool(images) and bool(masks), "images/ and masks/, or Original/ and 'Ground Truth'/")
    cases = (
        Case(
            id=f"frame{int(number):03d}",
            images=(partial(read_picture, image),),
            label=partial(read_mask, mask),
            patient=sequence_of(int(number)),
        )
        for number, (image, mask) in pairs(images, masks, where=source).items()
    )
    write_dataset(CARD, cases, target, source=source, ending=".png")
