"""Raw datasets: which cases there are, which files they consist of, and what their labels mean.

Read as they are: nnU-Net v2 (``channel_names``, suffixes ``_0000``, or the ``dataset`` path dictionary),
nnU-Net v1 and Medical Segmentation Decathlon (``modality``, ``training``). A case without a label file is
unlabelled.
"""

import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from glob import escape
from pathlib import Path
from typing import Any

from medplan.data.description import Description, read_description
from medplan.data.folds_file import FOLDS_FILE, read_folds
from medplan.data.formats import IMAGE_ENDINGS, PICTURE_ENDINGS, ending_of, stem_of
from medplan.data.labels import LabelSpace
from medplan.data.rawcase import RawCase
from medplan.errors import DataError, did_you_mean

__all__ = ["Dataset", "open_dataset"]

UNLABELLED_FOLDERS = ("imagesUnlabeled", "imagesUnlabelled", "imagesUn")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A raw dataset.

    Attributes:
        name: short name (``ACDC`` of ``Dataset027_ACDC``).
        folder: where dataset.json lies.
        channels: channel names, in order.
        labels: classes and their raw values.
        file_ending: of image files.
        cases: training cases, labelled and unlabelled, sorted by id.
        test_cases: of imagesTs, with labels where labelsTs has them, sorted by id.
        strays: label files that belong to no image, and images of another format than `file_ending`.
        splits: published splits by name, each a map from role to ids of training cases.
    """

    name: str
    folder: Path
    channels: tuple[str, ...]
    labels: LabelSpace
    file_ending: str
    cases: tuple[RawCase, ...]
    test_cases: tuple[RawCase, ...] = ()
    strays: tuple[Path, ...] = ()
    splits: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)

    @property
    def is_pictures(self) -> bool:
        """Whether the images are 2-D pictures without physical size."""
        return self.file_ending in PICTURE_ENDINGS

    def case(self, case_id: str) -> RawCase:
        """Return a training or test case. Raises DataError with the nearest id if there is none."""
        for case in (*self.cases, *self.test_cases):
            if case.id == case_id:
                return case
        known = [case.id for case in (*self.cases, *self.test_cases)]
        raise DataError(f"{self.folder}: there is no case '{case_id}'{did_you_mean(case_id, known)}.")


def open_dataset(folder: Path) -> Dataset:
    """Read the description of a raw dataset and list its cases; no image is opened.

    Args:
        folder: contains dataset.json, imagesTr and so on.

    Raises: DataError if dataset.json is missing or contradicts itself or the files.
    """
    folder = Path(folder)
    description = read_description(folder)
    ending = description.file_ending or _common_ending(folder, description)
    finder = _Finder(folder, description, ending)
    cases = finder.training()
    test_cases = finder.test()
    strays = finder.strays(cases)
    cases = _without(cases, description.exclude, description.where)
    for key, per_case in (("domain", description.domain), ("patient", description.patient)):
        _expect_known(per_case, (*cases, *test_cases), description, key)
    # Images without any class are good for pre-training; label files that mean nothing are a mistake.
    if not description.labels.names and any(case.is_labelled for case in cases):
        raise DataError(
            f"{description.where}: 'labels' declares no class besides the background, but there are label "
            'files; declare their values, as {"background": 0, "liver": 1}.'
        )
    if not cases:
        raise DataError(f"{folder}: there are no training images; expected files '*{ending}' in imagesTr.")
    return Dataset(
        # Of a link its own name, under which the workspace finds it, not that of what it leads to.
        name=re.sub(r"^(Dataset\d{3}|Task\d{2})_", "", os.path.basename(os.path.abspath(folder))),
        folder=folder,
        channels=description.channels,
        labels=description.labels,
        file_ending=ending,
        cases=cases,
        test_cases=test_cases,
        strays=strays,
        splits=_splits(folder, description, cases, test_cases),
    )


class _Finder:
    """Finds the files of the cases in the layouts that are known."""

    def __init__(self, folder: Path, description: Description, ending: str) -> None:
        self.folder = folder
        self.description = description
        self.ending = ending
        self.where = description.where
        self.passed_over: list[Path] = []

    def training(self) -> tuple[RawCase, ...]:
        if self.description.paths:
            found = [self._from_paths(name, entry) for name, entry in self.description.paths.items()]
        elif self.description.training:
            found = [self._from_entry(entry) for entry in self.description.training]
        else:
            labels = _by_stem(self.folder / "labelsTr")
            found = self._in_folder(self.folder / "imagesTr", labels)
        for name in UNLABELLED_FOLDERS:
            found += self._in_folder(self.folder / name, {})
        return self._sorted(found)

    def test(self) -> tuple[RawCase, ...]:
        labels = _by_stem(self.folder / "labelsTs")
        if self.description.test:
            return self._sorted([self._from_entry(entry, labels) for entry in self.description.test])
        return self._sorted(self._in_folder(self.folder / "imagesTs", labels))

    def strays(self, cases: Sequence[RawCase]) -> tuple[Path, ...]:
        """Return files in labelsTr that no case uses, and images that are passed over for their format."""
        used = {case.label.resolve() for case in cases if case.label is not None}
        labels = _by_stem(self.folder / "labelsTr").values()
        return (*sorted(path for path in labels if path.resolve() not in used), *self.passed_over)

    def _make(self, case_id: str, images: tuple[Path, ...], label: Path | None) -> RawCase:
        return RawCase(
            id=case_id,
            images=images,
            label=label,
            domain=self.description.domain.get(case_id),
            patient=self.description.patient.get(case_id),
        )

    def _sorted(self, cases: Sequence[RawCase]) -> tuple[RawCase, ...]:
        seen: dict[str, RawCase] = {}
        for case in cases:
            if case.id in seen:
                raise DataError(
                    f"{self.where}: two cases are called '{case.id}': {seen[case.id].images[0]} and "
                    f"{case.images[0]}; rename one."
                )
            seen[case.id] = case
        return tuple(seen[name] for name in sorted(seen))

    def _in_folder(self, folder: Path, labels: Mapping[str, Path]) -> list[RawCase]:
        """List the cases of a folder of images named ``CASE_0000``, one file per channel."""
        if not folder.is_dir():
            return []
        names = []
        for name in _visible(folder):
            if ending_of(name) == self.ending:
                names.append(name)
            elif ending_of(name):
                self.passed_over.append(folder / name)
        stems = [name[: -len(self.ending)] for name in names]
        channels: dict[str, dict[int, Path]] = {}
        for name, stem in zip(names, stems, strict=True):
            match = re.fullmatch(r"(.+)_(\d{4})", stem)
            if match is None:
                raise DataError(
                    f"{folder / name}: image files should end with the number of their channel, as "
                    f"'{stem}_0000{self.ending}'."
                )
            channels.setdefault(match[1], {})[int(match[2])] = folder / name
        return [
            self._make(case, self._expected(folder, case, found), labels.get(case))
            for case, found in channels.items()
        ]

    def _expected(self, folder: Path, case: str, found: Mapping[int, Path]) -> tuple[Path, ...]:
        """Return the files that should be there: one per channel, or the one RGB picture, and any surplus."""
        if self.ending in PICTURE_ENDINGS and list(found) == [0]:
            return (found[0],)
        numbers = sorted(set(range(len(self.description.channels))) | set(found))
        return tuple(found.get(number, folder / f"{case}_{number:04d}{self.ending}") for number in numbers)

    def _from_paths(self, case_id: str, entry: Any) -> RawCase:
        """Read one entry of the ``dataset`` path dictionary of nnU-Net v2."""
        if not case_id or "/" in case_id or "\\" in case_id:
            raise DataError(
                f"{self.where}: 'dataset.{case_id}': files are called by the name of their case, which "
                "should hold no slash; rename it."
            )
        images = entry.get("images") if isinstance(entry, Mapping) else None
        if isinstance(images, str):
            images = [images]
        if not isinstance(images, list) or not images or not all(isinstance(path, str) for path in images):
            raise DataError(f"{self.where}: 'dataset.{case_id}' should be an object with a list 'images'.")
        label = entry.get("label")
        if label is not None and not isinstance(label, str):
            raise DataError(f"{self.where}: 'dataset.{case_id}.label' should be a path.")
        return self._make(case_id, tuple(map(self._resolve, images)), self._resolve(label) if label else None)

    def _from_entry(self, entry: Any, labels: Mapping[str, Path] | None = None) -> RawCase:
        """Read one entry of ``training`` or ``test`` of a Decathlon or nnU-Net v1 dataset."""
        image = entry.get("image") if isinstance(entry, Mapping) else entry
        if not isinstance(image, str):
            raise DataError(f"{self.where}: entries of 'training' and 'test' should name an image file.")
        path = self._resolve(image)
        stem, folder = stem_of(path), path.parent
        written = entry.get("label") if isinstance(entry, Mapping) else None
        label = self._resolve(written) if isinstance(written, str) else (labels or {}).get(stem)
        # nnU-Net v1 lists CASE.nii.gz although the files are called CASE_0000.nii.gz and so on.
        if not path.is_file():
            numbered = {
                int(match[1]): other
                for other in folder.glob(f"{escape(stem)}_[0-9][0-9][0-9][0-9]{ending_of(path)}")
                if (match := re.search(r"_(\d{4})$", stem_of(other)))
            }
            if numbered:
                return self._make(stem, self._expected(folder, stem, numbered), label)
        return self._make(stem, (path,), label)

    def _resolve(self, written: str) -> Path:
        path = Path(os.path.expandvars(written)).expanduser()
        return path if path.is_absolute() else Path(os.path.normpath(self.folder / path))


def _visible(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if not name.startswith("."))


def _by_stem(folder: Path) -> dict[str, Path]:
    """Return label files by case; where one case has several, the lossless format wins over JPEG."""
    found: dict[str, Path] = {}
    for name in _visible(folder) if folder.is_dir() else []:
        ending = ending_of(name)
        if not ending:
            continue
        stem = stem_of(name)
        if stem in found and ending in (".jpg", ".jpeg"):
            continue
        found[stem] = folder / name
    return found


def _common_ending(folder: Path, description: Description) -> str:
    """Return the ending of the image files where dataset.json names none."""
    names: list[str] = []
    for entry in (*description.training, *description.paths.values()):
        path = entry.get("image", entry.get("images")) if isinstance(entry, Mapping) else entry
        names.append(str(path[0] if isinstance(path, list) and path else path))
    if not names and (folder / "imagesTr").is_dir():
        names = _visible(folder / "imagesTr")
    endings = sorted({ending_of(name) for name in names} - {""})
    if len(endings) != 1:
        found = " and ".join(endings) if endings else "no images"
        raise DataError(
            f"{description.where}: the key 'file_ending' is missing and cannot be guessed: found {found}; "
            f"write one of {', '.join(IMAGE_ENDINGS)}."
        )
    return endings[0]


def _without(cases: tuple[RawCase, ...], exclude: Sequence[str], where: str) -> tuple[RawCase, ...]:
    known = {case.id for case in cases}
    for name in exclude:
        if name not in known:
            raise DataError(f"{where}: 'exclude' names the unknown case '{name}'{did_you_mean(name, known)}.")
    if exclude:
        logger.info("%s: %d cases are excluded", where, len(exclude))
    left_out = set(exclude)
    return tuple(case for case in cases if case.id not in left_out)


def _splits(
    folder: Path, description: Description, cases: Sequence[RawCase], test_cases: Sequence[RawCase]
) -> dict[str, dict[str, tuple[str, ...]]]:
    """Return the splits of the training cases: those that are published, and folds that were chosen by hand.

    What is in imagesTs is tested on anyway.
    """
    training = {case.id for case in cases}
    result = {}
    folds = read_folds(folder / FOLDS_FILE) if (folder / FOLDS_FILE).is_file() else ()
    images = tuple(case.id for case in cases if case.label is None)
    chosen = {f"{FOLDS_FILE} {n}": {**fold, "unlabelled": images} for n, fold in enumerate(folds)}
    for name, roles in {**description.splits, **chosen}.items():
        named = {case: "" for ids in roles.values() for case in ids}
        _expect_known(named, (*cases, *test_cases), description, f"splits.{name}")
        kept = {role: tuple(case for case in ids if case in training) for role, ids in roles.items()}
        result[name] = {role: ids for role, ids in kept.items() if ids}
    return result


def _expect_known(
    per_case: Mapping[str, str], cases: Sequence[RawCase], description: Description, key: str
) -> None:
    known = {case.id for case in cases} | set(description.exclude)
    for name in per_case:
        if name not in known:
            raise DataError(
                f"{description.where}: '{key}' names the unknown case '{name}'{did_you_mean(name, known)}."
            )
