"""Small source folders in the layouts that the cards describe, and what must come out of them.

Arrays are in NIfTI's own order (x, y, z). Grids cycle through plain, flipped, permuted and oblique affines,
so that a converter that loses or reorders a grid is found out.
"""

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
SHAPE = (7, 6, 5)


def _turned(degrees: float) -> Array:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def _affine(axes: Array, origin: Sequence[float]) -> Array:
    affine = np.eye(4)
    affine[:3, :3] = axes * np.array([1.25, 1.5, 3.0])
    affine[:3, 3] = origin
    return affine


GRIDS = (
    _affine(np.eye(3), (0, 0, 0)),
    _affine(np.diag([-1.0, 1.0, 1.0]), (90, -126, -72)),
    _affine(np.diag([-1.0, -1.0, 1.0]), (90, 126, -72)),
    _affine(np.eye(3)[[2, 0, 1]], (1, 2, 3)),
    _affine(_turned(20)[:, [1, 2, 0]], (-30, 4, 50.5)),
)


@dataclass(frozen=True)
class Expected:
    """What the converted dataset must hold for one case."""

    images: tuple[Array, ...]
    label: Array | None
    affine: Array | None = None
    domain: str | None = None
    patient: str | None = None
    is_test: bool = False


Tree = dict[str, Expected]


def scan(seed: int, *, dtype: str = "int16", shape: tuple[int, ...] = SHAPE) -> Array:
    """Return random intensities; never twice the same for two seeds."""
    return np.random.default_rng(seed).integers(-900, 900, shape).astype(dtype)


def blobs(seed: int, values: Sequence[int], *, dtype: str = "uint8", shape: tuple[int, ...] = SHAPE) -> Array:
    """Return labels in which 0 and every one of `values` occur."""
    drawn = np.random.default_rng(seed + 1000).choice([0, *values], shape)
    drawn.reshape(-1)[: len(values) + 1] = [0, *values]
    return drawn.astype(dtype)


def renumbered(label: Array, values: dict[int, int]) -> Array:
    out = np.zeros_like(label, dtype=np.int64)
    for old, new in values.items():
        out[label == old] = new
    return out


def nifti(path: Path, array: Array, affine: Array) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(array, affine)
    nibabel.save(image, path)
    return path


def picture(path: Path, array: Array, **options: Any) -> Path:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def colours(seed: int, size: tuple[int, int] = (9, 12)) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)


def mask(seed: int, size: tuple[int, int] = (9, 12)) -> Array:
    drawn = np.random.default_rng(seed).integers(0, 2, size).astype(np.uint8)
    drawn[0, :2] = 0, 1
    return drawn


def plain_pairs(
    root: Path,
    names: Sequence[str],
    image: str,
    label: str | None,
    values: Sequence[int],
    *,
    renumber: dict[int, int] | None = None,
    ids: Callable[[str], str] = str,
    domain: Callable[[str], str | None] = lambda _: None,
    patient: Callable[[str], str | None] = lambda _: None,
    is_test: bool = False,
    seed: int = 0,
    dtype: str = "uint8",
) -> Tree:
    """Write scans (and labels) under path patterns with one ``{}`` or more for the name; return what is
    expected.
    """
    tree: Tree = {}
    for number, name in enumerate(names, start=seed):
        affine = GRIDS[number % len(GRIDS)]
        voxels = scan(number)
        nifti(root / image.replace("{}", name), voxels, affine)
        labels = None
        if label is not None:
            raw = blobs(number, values, dtype=dtype)
            nifti(root / label.replace("{}", name), raw, affine)
            labels = renumbered(raw, renumber) if renumber else raw
        tree[ids(name)] = Expected((voxels,), labels, affine, domain(name), patient(name), is_test)
    return tree


def masked_pictures(
    root: Path,
    names: Sequence[str],
    image: str,
    label: str,
    *,
    ids: Callable[[str], str] = str,
    **expected: Any,
) -> Tree:
    """Write pictures and masks; JPEG masks get the grey edges that compression makes."""
    tree: Tree = {}
    for number, name in enumerate(names):
        size = (9 + number, 12)
        shown, drawn = colours(number, size), mask(number, size)
        path = picture(
            root / image.replace("{}", name), shown, **({"quality": 95} if image.endswith("jpg") else {})
        )
        noise = np.random.default_rng(number).integers(0, 20, size).astype(np.uint8)
        picture(root / label.replace("{}", name), np.where(drawn == 1, 255 - noise, noise).astype(np.uint8))
        facts = {key: value(name) if callable(value) else value for key, value in expected.items()}
        tree[ids(name)] = Expected((_decoded(path),), drawn, **facts)
    return tree


def _decoded(path: Path) -> Array:
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def h5(path: Path, **arrays: Array) -> Path:
    import h5py

    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for key, array in arrays.items():
            file[key] = array
    return path


def nrrd(path: Path, array: Array, affine: Array) -> Path:
    import SimpleITK

    path.parent.mkdir(parents=True, exist_ok=True)
    SimpleITK.WriteImage(itk(array, affine), str(path))
    return path


def itk(array: Array, affine: Array) -> Any:
    """Return a SimpleITK image of an array (x, y, z) on a RAS affine."""
    import SimpleITK

    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image = SimpleITK.GetImageFromArray(array.T)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    return image


def series(folder: Path, array: Array, affine: Array, *, names: Sequence[str]) -> None:
    """Write a DICOM series; names[z] is the file of slice z."""
    import SimpleITK

    folder.mkdir(parents=True, exist_ok=True)
    image = itk(array, affine)
    direction = image.GetDirection()
    rows_columns = [direction[i] for i in (0, 3, 6, 1, 4, 7)]
    writer = SimpleITK.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for z, name in enumerate(names):
        cut = image[:, :, z]
        tags = {
            "0008|0060": "MR",
            "0020|000d": "1.2.826.0.1.1",
            "0020|000e": f"1.2.826.0.1.{sum(map(ord, str(folder)))}",
            "0008|0018": f"1.2.826.0.1.2.{z + 1}",
            "0020|0013": str(z + 1),
            "0020|0032": "\\".join(map(str, image.TransformIndexToPhysicalPoint((0, 0, z)))),
            "0020|0037": "\\".join(map(str, rows_columns)),
            "0018|0050": str(image.GetSpacing()[2]),
        }
        for key, value in tags.items():
            cut.SetMetaData(key, value)
        writer.SetFileName(str(folder / name))
        writer.Execute(cut)


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
    affine = _affine(np.diag([-1.0, -1.0, 1.0]), (40, 50, -60))
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


def clinicdb(root: Path) -> Tree:
    sequence = {"9": "sequence01", "26": "sequence02", "612": "sequence29"}
    ids = {"ids": lambda n: f"frame{int(n):03d}", "patient": sequence.get}
    return masked_pictures(root, list(sequence), "images/{}.png", "masks/{}.png", **ids)


def clinicdb_original(root: Path) -> Tree:
    ids = {"ids": lambda n: f"frame{int(n):03d}", "patient": lambda _: "sequence04"}
    return masked_pictures(root, ["68", "78"], "TIF/Original/{}.tif", "TIF/Ground Truth/{}.tif", **ids)


def hippocampus(root: Path) -> Tree:
    names = ["hippocampus_001", "hippocampus_003"]
    return plain_pairs(root, names, "images/{}.nii.gz", "labels/{}.nii.gz", [1, 2], dtype="float32")


def kits19(root: Path) -> Tree:
    base = root / "kits19" / "data"
    tree = plain_pairs(
        base, ["case_00000", "case_00003"], "{}/imaging.nii.gz", "{}/segmentation.nii.gz", [1, 2], seed=3
    )
    return tree | plain_pairs(base, ["case_00210"], "{}/imaging.nii.gz", None, [], is_test=True)


def kvasir(root: Path) -> Tree:
    tree = masked_pictures(
        root, ["cja", "cjb"], "images/{}.jpg", "masks/{}.jpg", is_test=lambda n: n == "cjb"
    )
    (root / "val.txt").write_text("cjb\n")
    return tree


def kvasir_sessile(root: Path) -> Tree:
    tree: Tree = {}
    for part in ("train", "val", "test"):
        names = [f"{part}1"]
        tree |= masked_pictures(root / part, names, "images/{}.jpg", "masks/{}.jpg", is_test=part == "test")
    return tree


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


def polypgen(root: Path) -> Tree:
    tree: Tree = {}
    for centre in ("C1", "C6"):
        images, masks = (
            f"data_{centre}/images_{centre}/{{}}.jpg",
            f"data_{centre}/masks_{centre}/{{}}_mask.jpg",
        )
        ids = {"ids": lambda n, c=centre: f"{c}_{n.replace(' ', '_')}", "domain": centre}
        tree |= masked_pictures(root, ["100H 50", "a1"], images, masks, **ids)
    return tree


def radiology(root: Path) -> Tree:
    grey = colours(1)[..., 0]
    picture(root / "deep" / "er" / "b 1.png", grey)
    path = picture(root / "a.jpg", colours(2))
    (root / "notes.txt").write_text("not a picture")
    (root / "broken.jpg").write_bytes(path.read_bytes()[:40])
    shown = np.stack([grey] * 3, -1)
    return {"a": Expected((_decoded(path),), None), "deep_er_b_1": Expected((shown,), None)}


def roco(root: Path) -> Tree:
    picture(root / "data" / "test" / "radiology" / "images" / "ROCO_1.jpg", colours(3))
    return {name: case for name, case in radiology(root / "data" / "train" / "radiology").items()}


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
            tree[name] = Expected(case.images, renumbered(case.label, joined), case.affine, "CT", name)
    for name, case in chaos_prepared(root / "mr").items():
        tree[name] = Expected(case.images, case.label, case.affine, "MR", case.patient)
    return tree


LAYOUTS: dict[str, tuple[Callable[[Path], Tree], ...]] = {
    "abdomen_ct_mr": (abdomen_ct_mr,),
    "abide": (freesurfer,),
    "acdc": (acdc_official, acdc_h5),
    "adni": (freesurfer,),
    "amos": (amos,),
    "autopet": (autopet,),
    "brain_structure": (brain_structure,),
    "chaos": (chaos_prepared, chaos_dicom),
    "clinicdb": (clinicdb, clinicdb_original),
    "hippocampus": (hippocampus,),
    "kits19": (kits19,),
    "kvasir": (kvasir,),
    "kvasir_sessile": (kvasir_sessile,),
    "laseg": (laseg_h5, laseg_nrrd),
    "lits": (lits,),
    "mmwhs": (mmwhs,),
    "mnms": (mnms,),
    "mscmrseg": (mscmrseg,),
    "msd": (msd,),
    "oasis": (oasis_malf, oasis_neurite),
    "polypgen": (polypgen,),
    "ppmi": (freesurfer,),
    "radiology": (radiology,),
    "roco": (roco,),
    "scgm": (scgm,),
    "segthor": (segthor,),
    "structseg_head": (structseg_head,),
    "structseg_thorax": (structseg_thorax,),
    "synapse": (synapse_raw, synapse_prepared),
}
