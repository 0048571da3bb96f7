import logging
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

from medplan import registry
from medplan.data.images import Geometry, Image, read_label
from medplan.data.labels import LabelSpace
from medplan.errors import CheckpointError, DataError, MethodError, UsageError
from medplan.plan.schema import Grid, Normalisation
from medplan.predict import postprocess
from medplan.predict.archive import export
from medplan.predict.folder import keep_for_prediction, read_support, write_support
from medplan.predict.members import mean_of
from medplan.predict.model import Model, Options
from medplan.predict.postprocess import Postprocessing
from medplan.preprocess.atlas import atlas_path
from medplan.preprocess.prepare import make_atlas
from medplan.runtime import Runtime
from medplan.samples.cases import Case
from tests.conftest import Phantom, make_phantom, write_nifti
from tests.predict.toy import LABELS, Toy, make_plan, make_run


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "find", lambda name: Toy)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", make_plan())


@pytest.fixture
def phantom() -> Phantom:
    return make_phantom(noise=0.0)


def truth(phantom: Phantom) -> np.ndarray:
    return np.array([0, 4, 9])[phantom.label]


def agreement(label: np.ndarray, reference: np.ndarray) -> float:
    """Mean Dice of the two classes."""
    return float(
        np.mean(
            [
                2 * ((label == v) & (reference == v)).sum() / ((label == v).sum() + (reference == v).sum())
                for v in (4, 9)
            ]
        )
    )


def test_an_array_is_segmented_on_its_own_grid(run: Path, phantom: Phantom) -> None:
    model = Model.load(run, device="cpu")
    label = model.predict_array(phantom.image, phantom.spacing_mm)
    assert label.shape == phantom.image.shape and label.dtype == np.uint8
    assert agreement(label, truth(phantom)) > 0.9
    with_channel = model.predict_array(phantom.image[None], phantom.spacing_mm)
    np.testing.assert_array_equal(with_channel, label)


def test_on_its_own_grid_the_answer_is_exact(tmp_path: Path, phantom: Phantom) -> None:
    plan = make_plan(grid=Grid(spacing_mm=None, orientation=None, crop="none"))
    model = Model.load(make_run(tmp_path / "run", plan), device="cpu")
    label = model.predict_array(phantom.image, phantom.spacing_mm)
    np.testing.assert_array_equal(label, truth(phantom))


def test_a_file_gives_what_its_array_gives_and_is_written_with_its_header(
    run: Path, tmp_path: Path, phantom: Phantom
) -> None:
    turn = (0.0, 1.0, 0.0, -1.0, 0.0, 0.0, 0.0, 0.0, 1.0)
    path = write_nifti(
        tmp_path / "in.nii.gz", phantom.image, phantom.spacing_mm, origin=(5.0, -6.0, 7.0), direction=turn
    )
    model = Model.load(run, device="cpu")
    label = model.predict_file(path, output=tmp_path / "out.nii.gz")
    written, geometry = read_label(tmp_path / "out.nii.gz")
    np.testing.assert_array_equal(written, label)
    np.testing.assert_allclose(geometry.direction, turn, atol=1e-6)
    np.testing.assert_allclose(geometry.origin_mm, (5.0, -6.0, 7.0), atol=1e-5)
    assert agreement(label, truth(phantom)) > 0.9
    np.testing.assert_array_equal(model.predict_file([str(path)]), label)


def test_a_picture_is_an_array_of_two_axes(tmp_path: Path, phantom: Phantom) -> None:
    plan = make_plan(
        dims=2, patch_size=(1, 16, 16), grid=Grid(spacing_mm=None, orientation=None, crop="none")
    )
    model = Model.load(make_run(tmp_path / "run", plan), device="cpu")
    middle = phantom.image[10]
    label = model.predict_array(middle)
    assert label.shape == middle.shape
    np.testing.assert_array_equal(label, truth(phantom)[10])


def test_folds_are_averaged(tmp_path: Path, phantom: Phantom) -> None:
    run = make_run(tmp_path / "run", make_plan(), folds=(0, 1, 3), noise=1.0)
    together = Model.load(run, device="cpu")
    assert together.folds == (0, 1, 3)
    image = Image(
        array=phantom.image[None], geometry=Geometry(shape=(20, 28, 24), spacing_mm=phantom.spacing_mm)
    )
    case = together.prepare(image).case
    mean = torch.cat(list(together.logits(case)), 1)
    apart = [torch.cat(list(Model.load(run, folds=[f], device="cpu").logits(case)), 1) for f in (0, 1, 3)]
    torch.testing.assert_close(mean, sum(apart) / 3, atol=1e-4, rtol=0)
    assert not torch.allclose(apart[0], apart[1])


def test_a_zip_predicts_what_its_folder_predicts(run: Path, tmp_path: Path, phantom: Phantom) -> None:
    packed = export(run, tmp_path / "model.zip")
    from_folder, from_zip = Model.load(run, device="cpu"), Model.load(packed, device="cpu")
    assert from_folder.digest == from_zip.digest
    np.testing.assert_array_equal(
        from_zip.predict_array(phantom.image, phantom.spacing_mm),
        from_folder.predict_array(phantom.image, phantom.spacing_mm),
    )


def test_a_loaded_model_neither_trains_nor_keeps_gradients(run: Path) -> None:
    for method in Model.load(run, device="cpu").methods:
        assert not any(module.training for module in method.modules())
        assert not any(parameter.requires_grad for parameter in method.parameters())


def test_models_that_differ_have_other_digests(run: Path, tmp_path: Path) -> None:
    digests = {Model.load(run, device="cpu").digest}
    digests.add(Model.load(make_run(tmp_path / "other", make_plan(), noise=0.1), device="cpu").digest)
    digests.add(
        Model.load(make_run(tmp_path / "third", make_plan(patch_size=(8, 8, 8))), device="cpu").digest
    )
    assert len(digests) == 3


def test_support_cases_reach_the_method_and_can_be_chosen(run: Path, phantom: Phantom) -> None:
    def example(name: str, value: float) -> Case:
        pixels = np.full((1, 2, 2, 2), value, np.float32)
        return Case(key=f"Phantom/{name}", pixels=pixels, codes=np.zeros((2, 2, 2), np.int16))

    write_support([example("plain", 0.0), example("shifted", -100.0)], run / "fold_0")
    reference = truth(phantom)
    plain = Model.load(run, device="cpu", support=["plain"]).predict_array(phantom.image, phantom.spacing_mm)
    assert agreement(plain, reference) > 0.9
    assert not Model.load(run, device="cpu").predict_array(phantom.image, phantom.spacing_mm).any()
    with pytest.raises(
        UsageError, match=r"no support case 'plane' \(did you mean 'plain'\?\); it has plain, shifted"
    ):
        Model.load(run, device="cpu", support=["plane"])


def test_postprocessing_is_applied_unless_it_is_not_wanted(run: Path, phantom: Phantom) -> None:
    postprocess.write(Postprocessing(largest_of=("liver",)), run)
    model = Model.load(run, device="cpu")
    image = phantom.image.copy()
    image[3:5, 12:15, 3:6] = 3.0
    with_it = model.predict_array(image, phantom.spacing_mm)
    without = model.predict_array(image, phantom.spacing_mm, options=Options(postprocessing=False))
    assert without[4, 13, 4] == 4 and with_it[4, 13, 4] == 0
    assert agreement(with_it, truth(phantom)) > 0.9


def test_only_the_wanted_classes_are_written(run: Path, phantom: Phantom) -> None:
    model = Model.load(run, device="cpu")
    everything = model.predict_array(phantom.image, phantom.spacing_mm)
    spleen = model.predict_array(phantom.image, phantom.spacing_mm, options=Options(classes=("spleen",)))
    np.testing.assert_array_equal(spleen, np.where(everything == 9, 9, 0))
    with pytest.raises(UsageError, match=r"no class 'splen' \(did you mean 'spleen'\?\)"):
        model.predict_array(phantom.image, phantom.spacing_mm, options=Options(classes=("splen",)))


def test_mirroring_leaves_x_alone_where_names_tell_sides(tmp_path: Path, phantom: Phantom) -> None:
    sided = LabelSpace(names=("left kidney", "right kidney"), values=((1,), (2,)))
    seen = []
    for labels in (LABELS, sided):
        model = Model.load(make_run(tmp_path / labels.names[0], make_plan(labels=labels)), device="cpu")
        case = Case(key="Phantom/a", pixels=np.zeros((1, 4, 4, 4), np.float32))
        forward = model.methods[0].layer.register_forward_hook(lambda *_: seen.append(1))
        list(model.logits(case, options=Options(mirror=True)))
        forward.remove()
        seen.append(0)
    assert seen == [1] * 8 + [0] + [1] * 4 + [0]


def test_probabilities_lie_on_the_inputs_grid(run: Path, tmp_path: Path, phantom: Phantom) -> None:
    model = Model.load(run, device="cpu")
    image = Image(
        array=phantom.image[None], geometry=Geometry(shape=(20, 28, 24), spacing_mm=phantom.spacing_mm)
    )
    label = model.predict_prepared(model.prepare(image), probabilities=tmp_path / "p.npy")
    probabilities = np.load(tmp_path / "p.npy")
    assert probabilities.shape == (3, 20, 28, 24)
    np.testing.assert_allclose(probabilities.sum(0), 1, atol=1e-5)
    np.testing.assert_array_equal(np.array([0, 4, 9])[probabilities.argmax(0)], label)


@pytest.mark.parametrize(
    ("array", "spacing", "match"),
    [
        (np.zeros((2, 4, 4, 4)), (1.0, 1.0, 1.0), r"expects 1 channels \(T1\), the image has 2"),
        (np.zeros((4, 4, 4)), None, "the image has no spacing"),
        (np.zeros(4), None, r"found shape \(4,\)"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(
    run: Path, array: np.ndarray, spacing: tuple[float, float, float] | None, match: str
) -> None:
    with pytest.raises(DataError, match=match):
        Model.load(run, device="cpu").predict_array(array, spacing)


def test_intensities_unlike_those_of_training_are_warned_of(
    tmp_path: Path, phantom: Phantom, caplog: pytest.LogCaptureFixture
) -> None:
    plan = make_plan()
    ct = Normalisation(scheme="zscore", low=-100.0, high=300.0, mean=50.0, std=80.0)
    dataset = plan.datasets[0]
    changed = {**vars(dataset), "normalisations": (ct,), "modalities": ("CT",)}
    model = Model.load(
        make_run(tmp_path / "run", make_plan(datasets=(type(dataset)(**changed),))), device="cpu"
    )
    with caplog.at_level(logging.WARNING):
        model.predict_array(phantom.image * 60 - 50, phantom.spacing_mm)
    assert caplog.text == ""
    with caplog.at_level(logging.WARNING):
        model.predict_array(phantom.image * 1e-3 + 1e4, phantom.spacing_mm)
    assert "between -100 and 300, the intensities seen in training" in caplog.text


def test_folds_of_other_plans_are_not_averaged(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", make_plan(), folds=(0,))
    make_run(run, make_plan(patch_size=(8, 8, 8)), folds=(1,))
    with pytest.raises(CheckpointError, match=r"different plans \(patch_size"):
        Model.load(run, device="cpu")


def test_what_is_no_model_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="neither a run folder nor a zip"):
        Model.load(tmp_path / "nothing")
    with pytest.raises(UsageError, match=r"has not learnt 'Fantom'.*did you mean 'Phantom'"):
        Model.load(make_run(tmp_path / "run", make_plan()), dataset="Fantom", device="cpu")


def test_the_atlas_travels_with_the_model(tmp_path: Path, phantom: Phantom) -> None:
    plan = make_plan(grid=Grid(spacing_mm=(3.0, 3.0, 3.0), align_to="a"))
    run = make_run(tmp_path / "run", plan)
    with pytest.raises(CheckpointError, match=r"atlas\.nrrd: there is no such file, but the model aligns"):
        Model.load(run, device="cpu")
    image = Image(
        array=phantom.image[None], geometry=Geometry(shape=(20, 28, 24), spacing_mm=phantom.spacing_mm)
    )
    make_atlas(image, plan.datasets[0], plan.grid).save(atlas_path(run / "fold_0"))
    from_folder = Model.load(run, device="cpu")
    from_zip = Model.load(export(run, tmp_path / "model.zip"), device="cpu")
    assert from_folder.digest == from_zip.digest
    label = from_zip.predict_array(phantom.image, phantom.spacing_mm)
    assert agreement(label, truth(phantom)) > 0.8


def test_what_prediction_needs_of_the_training_data_is_kept(tmp_path: Path) -> None:
    class Store:
        cases: ClassVar = {
            f"Phantom/{name}": Case(
                key=f"Phantom/{name}",
                pixels=np.full((1, 2, 2, 2), number, np.float32),
                codes=np.zeros((2, 2, 2), np.int16),
            )
            for number, name in enumerate("abc")
        }

        def role(self, name: str) -> tuple[str, ...]:
            return {"support": ("Phantom/c", "Phantom/a"), "labelled": ("Phantom/b",)}.get(name, ())

        def __getitem__(self, key: str) -> Case:
            return self.cases[key]

    (tmp_path / "preprocessed").mkdir()
    atlas_path(tmp_path / "preprocessed").write_bytes(b"atlas")
    keep_for_prediction(Store(), {"Phantom": tmp_path / "preprocessed"}, tmp_path / "fold_0")
    assert [case.key for case in read_support(tmp_path / "fold_0")] == ["Phantom/c", "Phantom/a"]
    assert atlas_path(tmp_path / "fold_0").read_bytes() == b"atlas"


def test_answers_that_float16_does_not_hold_are_no_answers() -> None:
    slabs = [torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), torch.inf)]
    answers = mean_of([iter(slabs)], Runtime(device=torch.device("cpu"), precision="fp16"))
    assert torch.equal(next(answers), slabs[0])
    with pytest.raises(MethodError, match="--precision fp32"):
        next(answers)
