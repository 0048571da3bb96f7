"""Labels that are in no group of the plan."""

import logging

import numpy as np

from medplan.data.images import Geometry, Image
from medplan.data.labels import LabelSpace
from medplan.plan.schema import DatasetPlan, Grid, Normalisation
from medplan.preprocess.prepare import prepare


def test_values_of_no_group_become_background_and_are_counted_in_the_log(caplog):
    plan = DatasetPlan(
        name="Brains",
        channels=("T1",),
        modalities=("MR",),
        labels=LabelSpace(names=("deep",), values=((59, 60),), others_are_background=True),
        normalisations=(Normalisation(scheme="zscore"),),
        folds=({"labelled": ("a",)},),
    )
    label = np.zeros((4, 4, 4), dtype=np.int16)
    label[0], label[1, 0], label[2, :, 0] = 60, 35, 77
    image = Image(
        array=np.random.default_rng(0).random((1, 4, 4, 4), dtype=np.float32),
        geometry=Geometry(shape=(4, 4, 4), spacing_mm=(1.0, 1.0, 1.0)),
    )
    with caplog.at_level(logging.INFO, logger="medplan"):
        case, _ = prepare(image, plan, Grid(spacing_mm=None, crop="none"), label=label, key="Brains/a")
    assert set(np.unique(case.label())) == {0, 1}
    assert "8 voxels of no class (values 35, 77)" in caplog.text
