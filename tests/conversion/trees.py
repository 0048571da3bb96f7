"""Small source folders in the layouts that the cards describe, and what must come out of them."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from tests.conversion.pieces import (
    GRIDS,
    SHAPE,
    Expected,
    Tree,
    blobs,
    grid,
    h5,
    nifti,
    nrrd,
    picture,
    plain_pairs,
    renumbered,
    scan,
    series,
)


def freesurfer(root: Path) -> Tree:
    tree: Tree = {}
    for number, (name, place, labelled) in enumerate(
        [("sub-1", "mri", True), ("sub_2", ".", True), ("sub3", "mri", False)]
    ):
        voxels, label = scan(number, dtype="float32"), blobs(number, [2, 17, 53, 251], dtype="int32")
        (root / name / place).mkdir(parents=True)
        nibabel.save(nibabel.MGHImage(voxels, GRIDS[number]), root / name / place / "norm.mgz")
        if labelled:
            nibabel.save(nibabel.MGHImage(label, GRIDS[number]), root / name / place / "aseg.mgz")
        tree[name] = Expected((voxels,), label if labelled else None, GRIDS[number], patient=name)
    return tree


def acdc_official(root: Path) -> Tree:
    own = {"ids": lambda n: n.split("/")[1], "patient": lambda n: n.split("/")[0]}
    train = [f"patient001/patient001_frame{time}" for time in ("01", "12")]
    tree = plain_pairs(root / "training", train, "{}.nii.gz", "{}_gt.nii.gz", [1, 2, 3], **own)
    nifti(root / "training/patient001/patient001_4d.nii.gz", scan(9, shape=(3, 3, 2, 4)), GRIDS[0])
    test = ["patient101/patient101_frame01"]
    return tree | plain_pairs(
        root / "testing", test, "{}.nii.gz", "{}_gt.nii.gz", [1, 2, 3], is_test=True, seed=3, **own
    )


def acdc_h5(root: Path) -> Tree:
    tree: Tree = {}
    for number, name in enumerate(("patient003_frame01", "patient003_frame15")):
        image, label = scan(number, dtype="float32"), blobs(number, [1, 2, 3])
        h5(root / "ACDC_training_volumes" / f"{name}.h5", image=image.T, label=label.T, scribble=label.T)
        tree[name] = Expected((image,), label, np.diag([-1.5625, -1.5625, 10, 1]), patient="patient003")
    return tree


def amos(root: Path) -> Tree:
    organs = range(1, 16)
    facts: dict[str, Any] = {"ids": lambda n: f"amos_{n}", "domain": lambda n: "CT" if int(n) < 500 else "MR"}
    base = root / "amos22"
    tree = plain_pairs(
        base, ["0001", "0507"], "imagesTr/amos_{}.nii.gz", "labelsTr/amos_{}.nii.gz", organs, **facts
    )
    facts["is_test"] = True
    tree |= plain_pairs(
        base, ["0008"], "imagesVa/amos_{}.nii.gz", "labelsVa/amos_{}.nii.gz", organs, seed=3, **facts
    )
    return tree | plain_pairs(base, ["0600"], "imagesTs/amos_{}.nii.gz", None, [], seed=4, **facts)


def amos_ct(root: Path) -> Tree:
    return {name: replace(case, domain=None) for name, case in amos(root).items() if case.domain == "CT"}


def amos_mr(root: Path) -> Tree:
    def without_pelvis(label: Any) -> Any:
        return None if label is None else np.where(label > 13, 0, label)

    return {
        name: replace(case, domain=None, label=without_pelvis(case.label))
        for name, case in amos(root).items()
        if case.domain == "MR"
    }


def autopet(root: Path) -> Tree:
    studies = [
        "PETCT_0a/10-21-2002-NA-PET-CT Ganz-56839",
        "PETCT_0a/11-01-2003-NA-PET-CT-00001",
        "PETCT_1b/x-7",
    ]
    tree = plain_pairs(
        root / "FDG-PET-CT-Lesions",
        studies,
        "{}/SUV.nii.gz",
        "{}/SEG.nii.gz",
        [1],
        ids=lambda n: n.replace("/", "_").replace("CT Ganz", "CT-Ganz"),
        patient=lambda n: n.split("/")[0],
    )
    return tree


def brain_structure(root: Path) -> Tree:
    tree: Tree = {}
    for number, (part, name) in enumerate([("train", "dlbs_1"), ("valid", "IXI_2"), ("test", "sald_3")]):
        image, affine = scan(number), GRIDS[number + 2]
        maps = np.random.default_rng(number).random((3, *SHAPE)).astype("float32")
        maps[:, 0] = 0
        for tissue, voxels in zip(("graymatter", "whitematter", "csf"), maps, strict=True):
            nifti(root / part / "mask" / f"{name}_probmask_{tissue}.nii", voxels, affine)
        nifti(root / part / "image" / f"{name}_img.nii", image, affine)
        label = maps.argmax(0) + 1
        label[0] = 0
        tree[name] = Expected((image,), label, affine, domain=name[:-2].lower(), is_test=part == "test")
    return tree


def chaos_prepared(root: Path) -> Tree:
    return plain_pairs(
        root,
        ["2", "13"],
        "image_{}.nii.gz",
        "label_{}.nii.gz",
        [1, 2, 3, 4],
        ids=lambda n: f"chaos{int(n):02d}_t2spir",
        domain=lambda _: "T2-SPIR",
        patient=lambda n: f"chaos{int(n):02d}",
        dtype="float64",
    )


def chaos_dicom(root: Path) -> Tree:
    """File numbers run against the slices in space, and cross the border from 9 to 10."""
    folder, tree = root / "Train_Sets" / "MR" / "7", {}
    affine = grid(np.diag([-1.0, -1.0, 1.0]), (40, 50, -60))
    grey = {0: 0, 1: 63, 2: 126, 3: 189, 4: 252}
    for number, (short, place, ground, domain) in enumerate(
        [
            ("t1in", "T1DUAL/DICOM_anon/InPhase", "T1DUAL/Ground", "T1 in-phase"),
            ("t1out", "T1DUAL/DICOM_anon/OutPhase", "T1DUAL/Ground", "T1 out-phase"),
            ("t2spir", "T2SPIR/DICOM_anon", "T2SPIR/Ground", "T2-SPIR"),
        ]
    ):
        image, label = np.abs(scan(number)), blobs(int("t2" in short), [1, 2, 3, 4])
        names = [f"IMG-4-{12 - z}" for z in range(SHAPE[2])]
        series(folder / place, image, affine, names=[f"{name}.dcm" for name in names])
        for z, name in enumerate(names):
            tinted = np.vectorize(grey.get)(label[:, :, z]) + (label[:, :, z] == 1) * 2
            picture(folder / ground / f"{name}.png", tinted.T.astype(np.uint8))
        tree[f"chaos07_{short}"] = Expected((image,), label, affine, domain, "chaos07")
    return tree


def hippocampus(root: Path) -> Tree:
    names = ["hippocampus_001", "hippocampus_003"]
    return plain_pairs(root, names, "images/{}.nii.gz", "labels/{}.nii.gz", [1, 2], dtype="float32")


def kits19(root: Path) -> Tree:
    base = root / "kits19" / "data"
    tree = plain_pairs(
        base, ["case_00000", "case_00003"], "{}/imaging.nii.gz", "{}/segmentation.nii.gz", [1, 2], seed=3
    )
    return tree | plain_pairs(base, ["case_00210"], "{}/imaging.nii.gz", None, [], is_test=True)


def laseg_h5(root: Path) -> Tree:
    tree: Tree = {}
    for number, name in enumerate(("0RZDK", "1GU15")):
        image, label = scan(number, dtype="float32"), blobs(number, [1])
        h5(root / "2018LA_Seg_Training Set" / name / "mri_norm2.h5", image=image, label=label)
        tree[name] = Expected((image,), label, np.diag([-0.625, -0.625, 0.625, 1]))
    return tree


def laseg_nrrd(root: Path) -> Tree:
    tree: Tree = {}
    for number, (part, name) in enumerate([("Training Set", "A1"), ("Testing Set", "B2")]):
        image, label, affine = scan(number), blobs(number, [255]), GRIDS[number + 3]
        nrrd(root / part / name / "lgemri.nrrd", image, affine)
        nrrd(root / part / name / "laendo.nrrd", label, affine)
        tree[name] = Expected((image,), label // 255, affine, is_test=part == "Testing Set")
    return tree


def lits(root: Path) -> Tree:
    ids = {"ids": lambda n: f"lits_{int(n):03d}"}
    tree = plain_pairs(
        root / "Batch 1", ["0", "33"], "volume-{}.nii", "segmentation-{}.nii", [1, 2], seed=3, **ids
    )
    repaired = GRIDS[4] / np.array([1.25, 1.5, 3.0, 1.0]) * np.array([1.0, 1.0, 1.8, 1.0])
    before = tree["lits_033"]
    tree["lits_033"] = Expected(before.images, before.label, repaired)
    return tree | plain_pairs(
        root, ["4"], "test-volume-{}.nii", None, [], ids=lambda n: f"lits_test_00{n}", is_test=True
    )


def mmwhs(root: Path) -> Tree:
    renumber = {205: 1, 420: 2, 421: 2, 500: 3, 820: 4, 550: 5, 600: 6, 850: 7}
    tree: Tree = {}
    for seed, modality in enumerate(("ct", "mr")):
        name, values = f"{modality}_train/{modality}_train_{{}}", [*renumber]
        facts: dict[str, Any] = {
            "ids": lambda n, m=modality: f"{m}_{n}",
            "domain": lambda _, m=modality: m.upper(),
        }
        tree |= plain_pairs(
            root,
            ["1003"],
            f"{name}_image.nii.gz",
            f"{name}_label.nii.gz",
            values,
            renumber=renumber,
            seed=seed,
            dtype="int16",
            **facts,
        )
        tree |= plain_pairs(
            root,
            ["2001"],
            f"{modality}_test/{modality}_test_{{}}_image.nii.gz",
            None,
            [],
            is_test=True,
            **facts,
        )
    return tree


def mnms(root: Path) -> Tree:
    tree: Tree = {}
    rows = [("A0S9V9", "B", "Training/Labeled"), ("B1", "A", "Testing"), ("C2", "C", "Training/Unlabeled")]
    root.mkdir(parents=True, exist_ok=True)
    with (root / "info.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["", "External code", "VendorName", "Vendor", "Centre", "ED", "ES"])
        writer.writerows([n, name, "x", vendor, 1, 0, 3] for n, (name, vendor, _) in enumerate(rows))
    for number, (name, vendor, part) in enumerate(rows):
        image, label = scan(number, shape=(*SHAPE, 4)), np.zeros((*SHAPE, 4), dtype="uint8")
        affine = GRIDS[number + 2]
        for time in (0, 3):
            label[..., time] = blobs(number + time, [1, 2, 3])
            known = label[..., time] if part != "Training/Unlabeled" else None
            tree[f"{name}_frame{time:02d}"] = Expected((image[..., time],), known, affine, vendor, name)
        nifti(root / part / name / f"{name}_sa.nii.gz", image, affine)
        if part != "Training/Unlabeled":
            nifti(root / part / name / f"{name}_sa_gt.nii.gz", label, affine)
    return tree


def mscmrseg(root: Path) -> Tree:
    def facts(domain: str) -> dict[str, Any]:
        return {
            "ids": lambda n: f"patient{int(n):02d}_{domain.lower()}",
            "domain": lambda _: domain,
            "patient": lambda n: f"patient{int(n):02d}",
        }

    old = {200: 2, 500: 3, 600: 1}
    tree = plain_pairs(
        root / "mscmr_bssfp",
        ["1"],
        "image_{}.nii.gz",
        "label_{}.nii.gz",
        [*old],
        renumber=old,
        dtype="float64",
        **facts("bSSFP"),
    )
    lge = root / "mscmr_lge"
    own = facts("LGE")
    tree |= plain_pairs(lge, ["13"], "train/images/subject{}_DE.nii.gz", None, [], seed=3, **own)
    image, label = "val/images/subject{}_DE.nii.gz", "val/labels/subject{}_DE_manual.nii.gz"
    return tree | plain_pairs(lge, ["1"], image, label, [1, 2, 3], seed=4, **own)


def msd(root: Path) -> Tree:
    """4-D images, the label order of a dictionary, and the hidden files that the archives come with."""
    described = {"modality": {"0": "T2", "1": "ADC"}, "labels": {"0": "background", "2": "TZ", "1": "PZ"}}
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset.json").write_text(json.dumps(described))
    tree: Tree = {}
    for number, (part, name) in enumerate([("Tr", "prostate_00"), ("Ts", "prostate_03")]):
        image, label, affine = scan(number, shape=(*SHAPE, 2)), blobs(number, [1, 2]), GRIDS[number + 3]
        nifti(root / f"images{part}" / f"{name}.nii.gz", image, affine)
        (root / f"images{part}" / f"._{name}.nii.gz").write_bytes(b"x")
        if part == "Tr":
            nifti(root / "labelsTr" / f"{name}.nii.gz", label, affine)
        known = label if part == "Tr" else None
        tree[name] = Expected((image[..., 0], image[..., 1]), known, affine, is_test=part == "Ts")
    return tree


def oasis_malf(root: Path) -> Tree:
    root.mkdir(parents=True, exist_ok=True)
    (root / "labels.csv").write_text(
        "Label Number,Label Name,Class\n4,3rd Ventricle,CSF\n100,R  gyrus,\n207,L gyrus,\n"
    )
    return plain_pairs(root, ["1000", "1001"], "{}_SS.nii.gz", "{}_glm.nii.gz", [4, 100], dtype="int16")


def oasis_neurite(root: Path) -> Tree:
    names = [f"OASIS_OAS1_000{n}_MR1" for n in (1, 2)]
    own: dict[str, Any] = {"patient": lambda n: n[:-4]}
    image = "{}/aligned_norm.nii.gz"
    tree = plain_pairs(root, names, image, "{}/aligned_seg35.nii.gz", range(1, 36), **own)
    return tree | plain_pairs(root, ["OASIS_OAS1_0003_MR1"], image, None, [], seed=3, **own)


def scans(root: Path) -> Tree:
    tree = plain_pairs(root, ["a_1"], "{}.nii.gz", "{}_seg.nii.gz", [1, 2], is_open=True)
    return tree | plain_pairs(root, ["b_2"], "{}.nii", None, [], is_open=True, seed=1)


def scgm(root: Path) -> Tree:
    """Four raters who agree, disagree two to two, and agree three to one."""
    tree: Tree = {}
    for number, name in enumerate(("site1-sc01", "site3-sc11")):
        image, label, affine = scan(number), blobs(number, [1, 2]), GRIDS[number + 3]
        nifti(root / "train" / f"{name}-image.nii.gz", image, affine)
        votes = np.stack([label] * 4)
        votes[0, 1] = (votes[0, 1] + 1) % 3
        votes[:2, 2, 0, 0], votes[2:, 2, 0, 0] = 1, 2
        label = label.copy()
        label[2, 0, 0] = 0
        for rater, voxels in enumerate(votes, start=1):
            if number == 0:
                nifti(root / "train" / f"{name}-mask-r{rater}.nii.gz", voxels, affine)
        tree[name] = Expected((image,), None if number else label, affine, name[:5], None, number == 1)
    return tree


def segthor(root: Path) -> Tree:
    train = ["Patient_01", "Patient_02"]
    tree = plain_pairs(root / "train", train, "{}/{}.nii.gz", "{}/GT.nii.gz", [1, 2, 3, 4], seed=2)
    return tree | plain_pairs(root / "test", ["Patient_41"], "{}.nii.gz", None, [], is_test=True)


def structseg_head(root: Path) -> Tree:
    own = {"ids": lambda n: f"han_{int(n):02d}"}
    return plain_pairs(
        root / "HaN_OAR", ["1", "10"], "{}/data.nii.gz", "{}/label.nii.gz", range(1, 23), seed=3, **own
    )


def structseg_thorax(root: Path) -> Tree:
    own = {"ids": lambda n: f"thorax_{int(n):02d}"}
    return plain_pairs(
        root / "Thoracic_OAR", ["1", "10"], "{}/data.nii.gz", "{}/label.nii.gz", range(1, 7), **own
    )


def synapse_raw(root: Path) -> Tree:
    own = {"ids": lambda n: f"img{n}"}
    base = root / "RawData"
    image, label = "Training/img/img{}.nii.gz", "Training/label/label{}.nii.gz"
    tree = plain_pairs(base, ["0001", "0021"], image, label, range(1, 14), **own)
    return tree | plain_pairs(
        base, ["0061"], "Testing/img/img{}.nii.gz", None, [], is_test=True, seed=3, **own
    )


def synapse_prepared(root: Path) -> Tree:
    """8-bit slices and labels whose header turns front and back round."""
    tree: Tree = {}
    for number, name in ((0, "img0001"), (10, "img0021")):
        label = blobs(number, range(1, 14), dtype="float32")
        grey = np.random.default_rng(number).integers(0, 256, SHAPE).astype(np.uint8)
        nifti(root / "nii" / f"label_{number}.nii.gz", label, np.diag([-1.25, -1.25, 3.0, 1.0]))
        for z in range(SHAPE[2]):
            picture(root / "png" / "img" / f"image_SABS_{number}_slice{z:03d}.png", grey[:, :, z])
        tree[name] = Expected((grey / 255 * 400 - 125,), label, np.diag([-1.25, 1.25, 3.0, 1.0]))
    return tree


def abdomen_ct_mr(root: Path) -> Tree:
    joined = {6: 1, 2: 2, 3: 3, 1: 4}
    tree: Tree = {}
    for name, case in synapse_raw(root / "ct").items():
        if case.label is not None:
            windowed = tuple(np.clip(image, -125, 275) for image in case.images)
            tree[name] = Expected(windowed, renumbered(case.label, joined), case.affine, "CT", name)
    for name, case in chaos_prepared(root / "mr").items():
        tree[name] = Expected(case.images, case.label, case.affine, "MR", case.patient)
    return tree
