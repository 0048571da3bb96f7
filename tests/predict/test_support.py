"""Examples given with the images: what is read, which classes they show, and who takes them."""

from dataclasses import replace

import numpy as np
import pytest

from medplan.data.images import Geometry, read_label, read_stored, write_image, write_label
from medplan.data.labels import LabelSpace
from medplan.errors import DataError, UsageError
from medplan.plan.schema import Grid
from medplan.predict.model import Model
from medplan.predict.support import Example, classes_shown, find_examples, prepare_examples
from tests.predict.toy import Toy, make_plan, make_run

GEOMETRY = Geometry(shape=(6, 10, 12), spacing_mm=(3.0, 3.0, 3.0))
ORGANS = LabelSpace(names=("liver", "spleen", "tube"), values=((4,), (9,), (5, 6)))


@pytest.fixture
def pair(tmp_path):
    label = np.zeros(GEOMETRY.shape, np.int16)
    label[2:4, 3:7, 3:7] = 7
    label[4, 2:5, 2:5] = 2
    image = write_image(tmp_path / "image.nii.gz", label.astype(np.float32), GEOMETRY)
    return image, write_label(tmp_path / "label.nii.gz", label, GEOMETRY)


@pytest.fixture
def model(tmp_path, monkeypatch):
    from medplan import registry

    monkeypatch.setattr(registry, "find", lambda name: Toy)
    return Model.load(make_run(tmp_path / "run", make_plan()), device="cpu")


def nowhere(name):
    raise AssertionError("no raw dataset should be looked at")


def test_the_classes_are_those_of_the_examples_on_the_plans_grid(pair):
    (example,) = find_examples([f"{pair[0]}:{pair[1]}"], dataset="Phantom", raw_folder=nowhere)
    plan, (case,) = prepare_examples([example], make_plan().datasets[0], Grid(spacing_mm=(1.5, 1.5, 1.5)))
    assert plan.labels == LabelSpace(names=("label 2", "label 7"), values=((2,), (7,)))
    assert case.spacing_mm == (1.5, 1.5, 1.5)
    assert set(case.locations) == {1, 2} and case.dataset == "Phantom"


def test_a_case_of_the_raw_dataset_keeps_its_names(raw_dataset):
    (example,) = find_examples(["case00"], dataset="Phantom", raw_folder=lambda name: raw_dataset)
    assert example.labels is not None
    with pytest.raises(DataError, match=r"no case .case99."):
        find_examples(["case99"], dataset="Phantom", raw_folder=lambda name: raw_dataset)


def test_classes_of_several_examples_are_joined_by_value():
    one = Example(name="a", images=(), label=None, labels=ORGANS)
    two = Example(name="b", images=(), label=None)
    shown = classes_shown([(one, np.array([0, 6, 9])), (two, np.array([1, 9]))])
    assert shown.names == ("label 1", "tube", "spleen") and shown.values == ((1,), (5, 6), (9,))
    with pytest.raises(DataError, match="nothing to look for"):
        classes_shown([(two, np.array([0, 0]))])


def test_missing_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"no file 'a\.nii\.gz'"):
        find_examples(["a.nii.gz:b.nii.gz"], dataset="Phantom", raw_folder=nowhere)


def shown_by(image, label, spacing=1.5, channels=1):
    plan = make_plan().datasets[0]
    plan = replace(
        plan,
        channels=plan.channels * channels,
        modalities=plan.modalities * channels,
        normalisations=plan.normalisations * channels,
    )
    example = Example(name="one", images=(image,), label=label)
    return prepare_examples([example], plan, Grid(spacing_mm=(spacing,) * 3))


def test_an_example_without_a_label_map_is_said(pair, tmp_path):
    with pytest.raises(DataError, match=r"without its label map; write IMAGE:LABEL"):
        find_examples([str(pair[0])], dataset="Phantom", raw_folder=nowhere)
    with pytest.raises(DataError, match=r"no label map '.*none\.nii\.gz'"):
        shown_by(pair[0], tmp_path / "none.nii.gz")


def test_missing_channels_of_an_example_are_counted(pair):
    with pytest.raises(DataError, match=r"sees 2 channels \(T1, T1\), the example has 1"):
        shown_by(*pair, channels=2)


def test_image_and_label_in_the_wrong_order_are_noticed(tmp_path):
    values = np.arange(np.prod(GEOMETRY.shape), dtype=np.int16).reshape(GEOMETRY.shape)
    image = write_image(tmp_path / "i.nii.gz", values.astype(np.float32), GEOMETRY)
    with pytest.raises(DataError, match=r"is this an image\? Write IMAGE:LABEL"):
        shown_by(image, write_label(tmp_path / "l.nii.gz", values, GEOMETRY))


@pytest.mark.parametrize(
    ("other", "what"),
    [
        ({"shape": (6, 10, 11)}, "shape"),
        ({"spacing_mm": (3.0, 3.0, 2.0)}, "spacing"),
        ({"direction": (-1.0, 0, 0, 0, -1.0, 0, 0, 0, 1.0)}, "orientation: RAS vs LPS"),
    ],
)
def test_a_label_map_that_lies_otherwise_than_its_image_is_refused(pair, tmp_path, other, what):
    geometry = replace(GEOMETRY, **other)
    label = write_label(tmp_path / "other.nii.gz", np.ones(geometry.shape, np.uint8), geometry)
    with pytest.raises(DataError, match=f"differ in {what}"):
        shown_by(pair[0], label)


def test_an_example_turned_with_its_label_shows_the_same(pair, tmp_path):
    image, _ = read_stored(pair[0])
    label, _ = read_label(pair[1])
    turned = replace(GEOMETRY, direction=(-1.0, 0, 0, 0, -1.0, 0, 0, 0, 1.0))
    others = (
        write_image(tmp_path / "ti.nii.gz", np.ascontiguousarray(image[0, :, ::-1, ::-1]), turned),
        write_label(tmp_path / "tl.nii.gz", np.ascontiguousarray(label[:, ::-1, ::-1]), turned),
    )
    (_, (one,)), (_, (other,)) = shown_by(*pair), shown_by(*others)
    assert np.array_equal(one.label(), other.label())
    assert np.allclose(one.image(), other.image(), atol=1e-5)


def test_a_class_that_the_grid_does_not_keep_is_named(tmp_path):
    label = np.zeros(GEOMETRY.shape, np.uint8)
    label[3, 5, 5] = 3
    image = write_image(tmp_path / "i.nii.gz", np.ones(GEOMETRY.shape, np.float32) + label, GEOMETRY)
    with pytest.raises(DataError, match=r"class 'label 3' is too small for the model's grid"):
        shown_by(image, write_label(tmp_path / "l.nii.gz", label, GEOMETRY), spacing=12.0)


def test_a_method_that_learns_its_classes_takes_no_example(model, pair):
    with pytest.raises(UsageError, match="it takes no example but its own"):
        model.with_support([Example(name="a", images=(pair[0],), label=pair[1])])


def test_a_shown_class_is_named_to_the_method_and_written_with_its_value(model, pair, monkeypatch):
    monkeypatch.setattr(Toy, "needs", replace(Toy.needs, new_classes=True))
    shown = model.with_support([Example(name="a", images=(pair[0],), label=pair[1])])
    heard = []

    def predictor(self, case, support):
        heard.append((case.prompts["classes"], [other.id for other in support]))
        return lambda patches, corners, flipped=(): self.layer(patches).float()

    monkeypatch.setattr(Toy, "predictor", predictor)
    found = shown.predict_file([pair[0]])
    assert heard == [(("label 2", "label 7"), ["a"])]
    assert set(np.unique(found)) <= {0, 2, 7} and shown.digest != model.digest
    assert model.dataset.labels.names == ("liver", "spleen")


def test_other_examples_of_the_same_classes_make_another_model(model, pair, tmp_path, monkeypatch):
    monkeypatch.setattr(Toy, "needs", replace(Toy.needs, new_classes=True))
    array, _ = read_label(pair[1])
    moved = write_label(tmp_path / "moved.nii.gz", np.roll(array, 1, axis=2), GEOMETRY)
    digests = {
        model.with_support([Example(name="a", images=(pair[0],), label=label)]).digest
        for label in (pair[1], moved)
    }
    assert len({model.digest, *digests}) == 3
