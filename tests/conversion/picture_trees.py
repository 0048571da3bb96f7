"""Small source folders of pictures in the layouts that the cards describe, and what must come out of them."""

from pathlib import Path

import numpy as np

from tests.conversion.pieces import Expected, Tree, colours, decoded, masked_pictures, picture


def clinicdb(root: Path) -> Tree:
    sequence = {"9": "sequence01", "26": "sequence02", "612": "sequence29"}
    ids = {"ids": lambda n: f"frame{int(n):03d}", "patient": sequence.get}
    return masked_pictures(root, list(sequence), "images/{}.png", "masks/{}.png", **ids)


def clinicdb_original(root: Path) -> Tree:
    ids = {"ids": lambda n: f"frame{int(n):03d}", "patient": lambda _: "sequence04"}
    return masked_pictures(root, ["68", "78"], "TIF/Original/{}.tif", "TIF/Ground Truth/{}.tif", **ids)


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
    return {"a": Expected((decoded(path),), None), "deep_er_b_1": Expected((shown,), None)}


def roco(root: Path) -> Tree:
    picture(root / "data" / "test" / "radiology" / "images" / "ROCO_1.jpg", colours(3))
    return {name: case for name, case in radiology(root / "data" / "train" / "radiology").items()}
