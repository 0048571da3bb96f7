"""Segmenting with shown classes: which slices serve, several shots and classes, and absent ones."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from medplan.networks.few_shot import ABSENT, FewShotPredictor
from medplan.networks.prototypes import Classifier
from medplan.preprocess.carry import body_box
from medplan.samples.cases import Case

SHAPE = (12, 64, 64)


def encode(pictures):
    """Tell intensities apart, cell by cell."""
    cells = F.avg_pool2d(pictures, 8)
    centres = torch.tensor([0.0, 1.0, 2.0, 3.0]).view(1, 4, 1, 1)
    return torch.exp(-4 * (cells - centres) ** 2)


def make_case(name, organs, *, slices=12):
    """Return a body of 1 with a block per organ: (code, value, first and last slice, corner)."""
    pixels = np.zeros((1, slices, *SHAPE[1:]), np.float32)
    pixels[:, 1:-1, 8:56, 8:56] = 1
    codes = np.zeros(pixels.shape[1:], np.int16)
    for code, value, first, last, corner in organs:
        box = (slice(first, last + 1), slice(corner, corner + 16), slice(corner, corner + 16))
        codes[box] = code
        pixels[(0, *box)] = value
    locations = {int(c): np.argwhere(codes == c) for c in np.unique(codes) if c > 0}
    return Case(key=f"A/{name}", pixels=pixels, codes=codes, spacing_mm=(5.0, 2.0, 2.0), locations=locations)


@pytest.fixture
def support():
    return make_case("s", [(1, 2.0, 3, 6, 16), (2, 3.0, 7, 9, 32)])


@pytest.fixture
def query():
    return make_case("q", [(1, 2.0, 4, 7, 24), (2, 3.0, 7, 8, 40)])


def segment(query, support, *, num_outputs=3, window=1, **changes):
    """Return the classes of the whole case."""
    predictor = FewShotPredictor(
        encode, Classifier(window=window), query, support, num_outputs=num_outputs, **changes
    )
    pictures = torch.from_numpy(np.moveaxis(query.image(), 1, 0))[:, :, None]
    logits = predictor(pictures, [(z, 0, 0) for z in range(query.shape[0])])
    assert logits.shape == (query.shape[0], num_outputs, 1, *SHAPE[1:])
    return logits.argmax(1)[:, 0].numpy()


def dice(found, truth):
    return 2 * (found & truth).sum() / max(1, found.sum() + truth.sum())


@pytest.mark.parametrize("correspondence", ["fit", "position", "similarity"])
def test_shown_classes_are_found_in_another_case(query, support, correspondence):
    found = segment(query, [support], correspondence=correspondence, margin=0.2)
    assert dice(found == 1, query.codes == 1) > 0.9 and dice(found == 2, query.codes == 2) > 0.9


def test_the_query_may_have_any_number_of_slices(support):
    longer = make_case("l", [(1, 2.0, 8, 15, 24)], slices=24)
    assert dice(segment(longer, [support], margin=0.2) == 1, longer.codes == 1) > 0.9


def test_classes_of_several_shots_are_joined(query, support):
    first = replace(support, locations={1: support.locations[1]})
    second = replace(support, key="A/t", locations={2: support.locations[2]})
    found = segment(query, [first, second], margin=0.2)
    assert dice(found == 1, query.codes == 1) > 0.9 and dice(found == 2, query.codes == 2) > 0.9


def test_a_class_that_no_shot_shows_is_nowhere(query, support):
    found = segment(query, [replace(support, locations={1: support.locations[1]})], margin=0.2)
    assert (found != 2).all() and (found == 1).any()


def test_slices_far_from_the_example_have_none_of_the_class(query, support):
    predictor = FewShotPredictor(encode, Classifier(window=1), query, [support], num_outputs=3, margin=0.0)
    body = body_box(query.image()[0])[0]
    assert body == (1, 10)
    assert predictor.shots(1, 1) == () and predictor.shots(4, 1) == ((0, 4),)
    logits = predictor(torch.zeros(1, 1, 1, 64, 64), [(1, 0, 0)])
    assert (logits[:, 1] == ABSENT).all()


@pytest.mark.parametrize("last", [3, 4])
def test_an_example_of_one_or_two_slices_serves_all_parts(query, last):
    support = make_case("s", [(1, 2.0, 3, last, 16)])
    shown = replace(query, prompts={"extent": {1: (4, 7)}})
    found = segment(shown, [support], num_outputs=2)
    assert dice(found == 1, query.codes == 1) > 0.85


def test_with_the_extent_given_parts_match_parts_and_beyond_it_the_nearest(query, support):
    shown = replace(query, prompts={"extent": {1: (4, 7)}})
    predictor = FewShotPredictor(encode, Classifier(window=1), shown, [support], num_outputs=2)
    assert [predictor.shots(z, 1)[0][1] for z in (0, 4, 5, 6, 7, 11)] == [3, 3, 3, 5, 6, 6]


def test_an_extent_of_one_slice_is_no_division_by_zero(query, support):
    shown = replace(query, prompts={"extent": {1: (5, 5)}})
    assert (segment(shown, [support], num_outputs=2) == 1).any()


def test_a_query_without_the_class_or_without_a_body_is_answered(support):
    nothing = Case(key="A/n", pixels=np.zeros((1, *SHAPE), np.float32))
    assert body_box(nothing.image()[0])[0] == (0, 11)
    assert segment(nothing, [support]).shape == SHAPE


def test_pixels_that_nobody_annotated_make_no_prototype(query, support):
    codes = support.codes.copy()
    codes[codes == 2] = -1
    support = replace(support, codes=codes, locations={1: support.locations[1]})
    assert dice(segment(query, [support], num_outputs=2, margin=0.2) == 1, query.codes == 1) > 0.9


def test_support_of_any_size_is_padded_to_the_encoder(query):
    small = make_case("s", [(1, 2.0, 3, 6, 16)])
    small = replace(small, pixels=small.pixels[..., :50, :45], codes=small.codes[..., :50, :45])
    assert dice(segment(query, [small], num_outputs=2, margin=0.2) == 1, query.codes == 1) > 0.9


def test_a_fit_finds_slices_and_outlines_of_a_scan_that_shows_more_and_lies_elsewhere(support):
    """The same body, moved within its scan, with more slices: the outline alone finds the organ."""
    moved = make_case("q", [])
    pixels = np.zeros((1, 18, *SHAPE[1:]), np.float32)
    codes = np.zeros(pixels.shape[1:], np.int16)
    pixels[:, 4:16, 2:62, 5:64] = support.pixels[:, :, :60, :59]
    codes[4:16, 2:62, 5:64] = support.codes[:, :60, :59]
    moved = replace(moved, pixels=pixels, codes=codes)
    predictor = FewShotPredictor(
        encode, Classifier(window=1), moved, [support], num_outputs=3, correspondence="fit", per_mm=10.0
    )
    assert predictor.shots(8, 1) == ((0, 4),)
    found = segment(moved, [support], correspondence="fit", per_mm=10.0)
    assert dice(found == 1, codes == 1) > 0.8 and dice(found == 2, codes == 2) > 0.8


def test_outlines_follow_windows_and_mirrored_windows(query, support):
    predictor = FewShotPredictor(
        encode, Classifier(window=1), query, [support], num_outputs=3, correspondence="fit", per_mm=10.0
    )
    whole = torch.from_numpy(query.image()[None, :, 5:6])
    part = whole[..., 8:40, 20:52]
    (expected,) = predictor(part, [(5, 8, 20)])
    (mirrored,) = predictor(part.flip(4), [(5, 8, 20)], (2,))
    inside = expected.argmax(0)[0]
    assert torch.equal(mirrored.argmax(0)[0].flip(1), inside) and inside.any()


def test_a_class_that_can_be_anywhere_is_found_by_its_look_alone(support):
    elsewhere = make_case("e", [(1, 2.0, 9, 11, 32)])
    elsewhere = replace(elsewhere, prompts={"anywhere": True})
    predictor = FewShotPredictor(
        encode, Classifier(window=1), elsewhere, [support], num_outputs=2, correspondence="fit"
    )
    assert not predictor.carried
    assert dice(segment(elsewhere, [support], num_outputs=2) == 1, elsewhere.codes == 1) > 0.9


def test_pictures_and_given_extents_are_not_fitted(query, support):
    plain = {"num_outputs": 3, "correspondence": "fit"}
    for case in (replace(query, spacing_mm=None), replace(query, prompts={"extent": {1: (4, 7), 2: (7, 8)}})):
        assert not FewShotPredictor(encode, Classifier(window=1), case, [support], **plain).carried
