"""The three settings of the paper, from raw data to a trained model: only the roles of cases differ."""

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from medplan.data.dataset import open_dataset
from medplan.errors import MethodError
from medplan.methods.sdmessenger import SDMessenger
from medplan.plan.fingerprint import extract
from medplan.plan.overrides import Overrides
from medplan.plan.planner import decide
from medplan.preprocess.run import preprocess
from medplan.runtime import Runtime
from medplan.samples.cases import CaseFiles, CaseStore
from medplan.train.loop import train

DOMAINS = {"ct0": "CT", "ct1": "CT", "ct2": "CT", "mr0": "MR", "mr1": "MR", "us0": "US"}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Six labelled scans of three domains, in nnU-Net's layout."""
    folder = tmp_path_factory.mktemp("raw") / "Domains"
    for number, name in enumerate(DOMAINS):
        rng = np.random.default_rng(number)
        label = np.zeros((12, 20, 20), np.uint8)
        label[3:9, 5:14, 6:15] = 1
        image = (100 + 50 * label + 10 * rng.standard_normal(label.shape)).astype(np.float32)
        for part, array in ((f"imagesTr/{name}_0000", image), (f"labelsTr/{name}", label)):
            path = folder / f"{part}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            sitk.WriteImage(sitk.GetImageFromArray(array), str(path))
    description = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "organ": 1},
        "numTraining": len(DOMAINS),
        "file_ending": ".nii.gz",
        "domain": DOMAINS,
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    return open_dataset(folder)


@pytest.fixture(scope="module")
def plan_for(dataset, tmp_path_factory):
    fingerprint = extract(dataset, cache=tmp_path_factory.mktemp("cache") / "fingerprint.json", workers=1)

    def make(**overrides):
        settings = {"config.warmup": 0.0, "pyramid.features": [4, 8, 8]}
        chosen = Overrides(
            iterations=2, batch_size=1, patch_size=(8, 16, 16), spacing=(1.0,), settings=settings, **overrides
        )
        return decide([fingerprint], "sdmessenger", SDMessenger, chosen)[0]

    return make


def test_adaptation_never_opens_target_labels_that_are_on_disk(dataset, plan_for, tmp_path: Path):
    plan = plan_for(source_domain="CT", target_domain="MR")
    for fold in range(len(plan.datasets[0].folds)):
        roles = plan.roles(fold)
        assert set(roles["unlabelled"]) >= {"Domains/mr0", "Domains/mr1"}
        assert all("/ct" in key for key in (*roles["labelled"], *roles["validation"]))
    folder = tmp_path / "cases"
    preprocess(dataset, plan.datasets[0], plan.grid, folder, workers=1)
    for name in ("mr0", "mr1"):
        files = CaseFiles(folder, name)
        for path in (files.label, files.locations):
            assert path.is_file()
            path.write_bytes(b"not a label")
    store = CaseStore({"Domains": folder}, plan, 0)
    best = train(
        SDMessenger(plan), plan, store, tmp_path / "run", fold=0, runtime=Runtime.choose("cpu"), workers=0
    )
    assert best.is_file()
    with pytest.raises(MethodError, match="no label"):
        store["Domains/mr0"].label()


def test_a_left_out_domain_is_in_no_list_that_is_learned_from(plan_for):
    plan = plan_for(leave_out_domain="US", labelled="1")
    for fold in range(len(plan.datasets[0].folds)):
        roles = plan.roles(fold)
        assert roles["test"] == ("Domains/us0",)
        learned = {key for role in ("labelled", "unlabelled", "validation") for key in roles.get(role, ())}
        assert learned == {f"Domains/{name}" for name in DOMAINS if name != "us0"}
        assert len(roles["labelled"]) == 1


def test_few_labels_of_one_domain_leave_the_other_training_cases_unlabelled(plan_for):
    plan = plan_for(labelled="50%")
    for fold in range(len(plan.datasets[0].folds)):
        roles = plan.roles(fold)
        lists = [set(roles[role]) for role in ("labelled", "unlabelled", "validation")]
        assert all(lists) and sum(map(len, lists)) == len(set.union(*lists)) == len(DOMAINS)
