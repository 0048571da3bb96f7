"""MS-CMRSeg: the heart in two MR sequences, for learning across sequences."""

from pathlib import Path

from dataset_conversion.card import Card
from dataset_conversion.listing import by_pattern, choose, folders_below, require
from dataset_conversion.writing import Case, write_dataset

CARD = Card(
    name="MSCMRSeg",
    title="Multi-Sequence Cardiac MR Segmentation Challenge 2019",
    about=(
        "Short-axis MR of 45 patients in the sequences bSSFP (cine-like) and LGE (scar bright), most of LGE "
        "unlabelled."
    ),
    modality="MR (bSSFP and LGE)",
    home="zmiclab.github.io/zxh/0/mscmrseg19",
    licence="research use, on request from the challenge",
    layout=(
        "one folder with mscmr_bssfp/ (image_N.nii.gz, label_N.nii.gz with 200 myocardium, 500 left and 600 "
        "right ventricle) and mscmr_lge/ ({train,val}/{images,labels}/subjectN_DE[_manual].nii.gz with 1 "
        "right ventricle, 2 myocardium, 3 left ventricle), or either of the two alone",
        "the challenge's own: patientN_C0.nii.gz, patientN_LGE.nii.gz and their _manual.nii.gz, in any "
        "folders below",
    ),
    channels=("MR",),
    labels={"right ventricle": 1, "myocardium": 2, "left ventricle": 3},
    num_cases="45 patients, each in both sequences; 35 bSSFP and 5 LGE with labels in the challenge",
    serves=("sdmessenger",),
    split=(
        "By patient: subject N of LGE is taken to be patient N of bSSFP, so that both stay together. The "
        "headers bear it out where it could be compared (patient 1: parallel slices)."
    ),
)

_UNIFIED = {0: 0, 1: 1, 2: 2, 3: 3, 200: 2, 500: 3, 600: 1}


def convert(source: Path, target: Path) -> None:
    """Take the images as they are; labels of both sequences get the numbers 1 to 3."""
    images: dict[tuple[str, int], Path] = {}
    labels: dict[tuple[str, int], Path] = {}
    bssfp = choose(source, "mscmr_bssfp") or source
    for kind, found in (("image", images), ("label", labels)):
        for number, path in by_pattern(bssfp, rf"{kind}_(\d+)\.nii(?:\.gz)?").items():
            found["bSSFP", int(number)] = path
    for folder in folders_below(source):
        for suffix, domain in (("DE", "LGE"), ("LGE", "LGE"), ("C0", "bSSFP")):
            name = rf"(?:subject|patient)(\d+)_{suffix}"
            images |= {
                (domain, int(n)): path for n, path in by_pattern(folder, name + r"\.nii(?:\.gz)?").items()
            }
            manual = by_pattern(folder, name + r"_manual\.nii(?:\.gz)?")
            labels |= {(domain, int(n)): path for n, path in manual.items()}
    require(source, bool(images), "mscmr_bssfp/ and mscmr_lge/, or patientN_{C0,LGE}.nii.gz")
    cases = (
        Case(
            id=f"patient{number:02d}_{domain.lower()}",
            images=(path,),
            label=labels.get((domain, number)),
            values=_UNIFIED,
            domain=domain,
            patient=f"patient{number:02d}",
        )
        for (domain, number), path in images.items()
    )
    write_dataset(CARD, cases, target, source=source)
