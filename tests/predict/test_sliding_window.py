import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from medplan.data.labels import LabelSpace
from medplan.errors import MethodError
from medplan.predict import sliding_window
from medplan.predict.sliding_window import (
    ahead,
    choose_batch_size,
    predict_case,
    predict_classes,
)
from medplan.runtime import Runtime
from medplan.samples.cases import Case
from tests.conformance.device import Far, emulated

MakeCase = Callable[..., Case]
Corners = Sequence[tuple[int, int, int]]
SHAPES = [
    ((9, 11, 13), (4, 4, 4)),
    ((5, 6, 7), (8, 4, 16)),
    ((1, 20, 17), (1, 8, 8)),
    ((12, 9, 9), (1, 9, 4)),
]


def identity(patches: Tensor, corners: Corners, flipped: Sequence[int] = ()) -> Tensor:
    return patches


def whole(*arguments: object, **named: object) -> np.ndarray:
    return torch.cat(list(predict_case(*arguments, **named)), dim=1).numpy()


def naive(
    predictor: Callable[[Tensor, Corners], Tensor], case: Case, patch: tuple[int, ...], step: float
) -> np.ndarray:
    """The whole volume at once: weighted logits divided by the sum of weights, in float64, on a padded
    copy."""
    pad = [max(0, p - s) for p, s in zip(patch, case.shape, strict=True)]
    before = [p // 2 for p in pad]
    image = np.pad(case.pixels, [(0, 0), *((b, p - b) for b, p in zip(before, pad, strict=True))])
    starts = []
    for size, side in zip(image.shape[1:], patch, strict=True):
        number = int(np.ceil((size - side) / max(1.0, side * step))) + 1
        starts.append([round(i * (size - side) / max(1, number - 1)) for i in range(number)])
    axes = [np.exp(-0.5 * ((np.arange(p) - (p - 1) / 2) / (p / 8)) ** 2) for p in patch]
    gauss = np.einsum("i,j,k->ijk", *axes)
    total, weights = 0.0, np.zeros(image.shape[1:])
    for corner in itertools.product(*starts):
        box = tuple(slice(c, c + p) for c, p in zip(corner, patch, strict=True))
        with torch.no_grad():
            logits = predictor(torch.from_numpy(image[(slice(None), *box)][None]), [corner])[0].numpy()
        if isinstance(total, float):
            total = np.zeros((len(logits), *image.shape[1:]))
        total[(slice(None), *box)] += logits * gauss
        weights[box] += gauss
    cut = tuple(slice(b, b + s) for b, s in zip(before, case.shape, strict=True))
    return (total / weights)[(slice(None), *cut)]


@given(
    shape=st.tuples(*[st.integers(1, 14)] * 3),
    patch=st.tuples(*[st.integers(1, 9)] * 3),
    step=st.floats(0.2, 1.0),
    batch=st.integers(1, 5),
)
@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_a_predictor_that_returns_its_input_gives_back_the_case(
    make_case: MakeCase, shape: tuple[int, int, int], patch: tuple[int, int, int], step: float, batch: int
) -> None:
    case = make_case(shape)
    answer = whole(identity, case, patch_size=patch, num_outputs=2, step=step, batch_size=batch)
    np.testing.assert_allclose(answer, case.pixels, atol=1e-5)


@pytest.mark.parametrize(("shape", "patch"), SHAPES)
def test_a_constant_predictor_is_constant_everywhere(
    make_case: MakeCase, shape: tuple[int, int, int], patch: tuple[int, int, int]
) -> None:
    def constant(patches: Tensor, corners: Corners, flipped: Sequence[int] = ()) -> Tensor:
        return torch.full((len(patches), 3, *patch), 7.0)

    answer = whole(constant, make_case(shape), patch_size=patch, num_outputs=3)
    assert answer.shape == (3, *shape)
    np.testing.assert_allclose(answer, 7.0, rtol=1e-6)


@pytest.mark.parametrize(("shape", "patch"), SHAPES)
@pytest.mark.parametrize("step", [0.5, 0.9])
def test_the_stream_equals_the_whole_volume(
    make_case: MakeCase,
    convolution: Callable[..., Tensor],
    shape: tuple[int, int, int],
    patch: tuple[int, int, int],
    step: float,
) -> None:
    case = make_case(shape)
    answer = whole(convolution, case, patch_size=patch, num_outputs=3, step=step)
    np.testing.assert_allclose(answer, naive(convolution, case, patch, step), atol=3e-6)


@pytest.mark.parametrize(("shape", "patch"), SHAPES)
def test_the_number_of_windows_per_pass_does_not_matter(
    make_case: MakeCase,
    convolution: Callable[..., Tensor],
    shape: tuple[int, int, int],
    patch: tuple[int, int, int],
) -> None:
    case = make_case(shape)
    one = whole(convolution, case, patch_size=patch, num_outputs=3, batch_size=1)
    for batch_size in (2, 7, 100):
        several = whole(convolution, case, patch_size=patch, num_outputs=3, batch_size=batch_size)
        np.testing.assert_allclose(several, one, atol=2e-6)


def test_corners_say_where_the_patches_lie(make_case: MakeCase) -> None:
    case = make_case((7, 10, 3), channels=1)
    z, y, x = np.indices(case.shape)
    place = (z * 10000 + y * 100 + x + 1).astype(np.float32)
    case = Case(key="Phantom/places", pixels=place[None])
    seen = []

    def check(patches: Tensor, corners: Corners, flipped: Sequence[int] = ()) -> Tensor:
        for patch, corner in zip(patches, corners, strict=True):
            inside = patch[0].nonzero()[0]
            index = [int(c + i) for c, i in zip(corner, inside, strict=True)]
            assert patch[0][tuple(inside)] == place[tuple(index)]
            seen.append(corner)
        return patches

    whole(check, case, patch_size=(4, 4, 6), num_outputs=1, batch_size=2)
    assert len(seen) == 3 * 4 * 1 == len(set(seen))
    assert {corner[2] for corner in seen} == {-1}


def test_predictors_are_told_how_windows_are_mirrored(make_case: MakeCase) -> None:
    """A predictor that answers from the case, not from its patches, gives back the case."""
    case = make_case((5, 6, 7))

    def recall(patches: Tensor, corners: Corners, flipped: Sequence[int] = ()) -> Tensor:
        upper = [tuple(c + n for c, n in zip(corner, (4, 4, 4), strict=True)) for corner in corners]
        cut = [case.image(low, high) for low, high in zip(corners, upper, strict=True)]
        own = torch.from_numpy(np.stack(cut)).flip([axis + 2 for axis in flipped])
        assert torch.equal(own, patches)
        return own

    found = whole(recall, case, patch_size=(4, 4, 4), num_outputs=2, mirror_axes=(0, 1, 2))
    np.testing.assert_allclose(found, case.pixels, atol=2e-6)


def test_mirroring_averages_over_every_flip(make_case: MakeCase, convolution: Callable[..., Tensor]) -> None:
    case = make_case((6, 6, 6))
    mirrored = whole(convolution, case, patch_size=(6, 6, 6), num_outputs=3, mirror_axes=(0, 2))
    expected = 0.0
    for axes in ((), (1,), (3,), (1, 3)):
        turned = Case(key="Phantom/turned", pixels=np.ascontiguousarray(np.flip(case.pixels, axes)))
        expected = (
            expected + np.flip(whole(convolution, turned, patch_size=(6, 6, 6), num_outputs=3), axes) / 4
        )
    np.testing.assert_allclose(mirrored, expected, atol=2e-6)


def test_mirroring_changes_nothing_for_a_predictor_without_direction(make_case: MakeCase) -> None:
    case = make_case((7, 8, 9))
    plain = whole(identity, case, patch_size=(4, 4, 4), num_outputs=2)
    np.testing.assert_allclose(
        whole(identity, case, patch_size=(4, 4, 4), num_outputs=2, mirror_axes=(0, 1, 2)), plain, atol=2e-6
    )


def test_several_predictors_are_averaged(make_case: MakeCase, convolution: Callable[..., Tensor]) -> None:
    case = make_case((9, 8, 7))

    def other(patches: Tensor, corners: Corners, flipped: Sequence[int] = ()) -> Tensor:
        return torch.cat([patches, patches[:, :1]], dim=1)

    together = whole([convolution, other], case, patch_size=(4, 4, 4), num_outputs=3)
    apart = [whole(one, case, patch_size=(4, 4, 4), num_outputs=3) for one in (convolution, other)]
    np.testing.assert_allclose(together, sum(apart) / 2, atol=2e-6)


def test_a_tensor_that_a_predictor_keeps_is_not_written_to(make_case: MakeCase) -> None:
    kept = torch.ones(1, 2, 4, 4, 4)

    def keep(patches: Tensor, corners: Corners, flipped: Sequence[int] = ()) -> Tensor:
        return kept

    whole(
        [keep, keep],
        make_case((4, 9, 4)),
        patch_size=(4, 4, 4),
        num_outputs=2,
        mirror_axes=(0,),
        batch_size=1,
    )
    assert (kept == 1).all()


def test_half_precision_sums_stay_within_their_error(make_case: MakeCase) -> None:
    case = make_case((9, 11, 13))
    answer = whole(identity, case, patch_size=(4, 4, 4), num_outputs=2, ring_bytes=0)
    assert np.abs(answer - case.pixels).max() < 2e-3 * np.abs(case.pixels).max()
    assert answer.dtype == np.float32


def test_slabs_come_in_order_and_stay_small(make_case: MakeCase, monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case((30, 6, 6))
    monkeypatch.setattr(sliding_window, "SLAB_BYTES", 2 * 6 * 6 * 4 * 3)
    slabs = list(predict_case(identity, case, patch_size=(8, 4, 4), num_outputs=2))
    assert max(slab.shape[1] for slab in slabs) == 3
    np.testing.assert_allclose(torch.cat(slabs, 1).numpy(), case.pixels, atol=1e-5)


def test_memory_does_not_grow_with_the_number_of_slices(
    make_case: MakeCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    rings = []
    zeros = torch.zeros

    def record(*arguments: object, **named: object) -> Tensor:
        rings.append(zeros(*arguments, **named))
        return rings[-1]

    monkeypatch.setattr(torch, "zeros", record)
    for depth in (8, 80):
        for _ in predict_case(identity, make_case((depth, 6, 6)), patch_size=(4, 4, 4), num_outputs=2):
            pass
    assert [ring.shape for ring in rings] == [(2, 4, 6, 6)] * 2


def test_the_first_slab_arrives_before_the_last_window_is_computed(make_case: MakeCase) -> None:
    computed = []

    def count(patches: Tensor, corners: Corners, flipped: Sequence[int] = ()) -> Tensor:
        computed.extend(corners)
        return patches

    stream = predict_case(count, make_case((40, 4, 4)), patch_size=(4, 4, 4), num_outputs=2, batch_size=1)
    next(stream)
    assert len(computed) == 2


def test_a_wrong_answer_of_a_predictor_is_named(make_case: MakeCase) -> None:
    with pytest.raises(MethodError, match=r"Phantom/case.*\(1, 2, 4, 4, 4\).*\(1, 5, 4, 4, 4\)"):
        whole(identity, make_case((4, 4, 4)), patch_size=(4, 4, 4), num_outputs=5)


def test_gradients_are_off_in_the_predictor_and_on_for_the_consumer(make_case: MakeCase) -> None:
    def check(patches: Tensor, corners: Corners, flipped: Sequence[int] = ()) -> Tensor:
        assert not torch.is_grad_enabled()
        return patches

    for _ in predict_case(check, make_case((9, 4, 4)), patch_size=(4, 4, 4), num_outputs=2):
        assert torch.is_grad_enabled()


def test_classes_of_exclusive_labels_are_codes() -> None:
    labels = LabelSpace(names=("liver", "spleen"), values=((3,), (7,)))
    codes = np.random.default_rng(0).integers(0, 3, (6, 7, 8))
    case = Case(key="Phantom/case", pixels=np.moveaxis(np.eye(3, dtype=np.float32)[codes], -1, 0))
    answer = predict_classes(identity, case, labels, patch_size=(4, 4, 4))
    np.testing.assert_array_equal(answer, codes)
    assert answer.dtype == np.int16


def test_regions_are_painted_in_their_order_and_compare_as_codes() -> None:
    labels = LabelSpace(names=("whole", "core"), values=((1, 2), (2,)), region_order=(1, 2))
    codes = np.random.default_rng(0).integers(0, 3, (6, 7, 8))
    logits = np.where(labels.membership()[:, codes], 2.0, -2.0).astype(np.float32)
    case = Case(key="Phantom/case", pixels=logits)
    np.testing.assert_array_equal(predict_classes(identity, case, labels, patch_size=(4, 4, 4)), codes)


def test_the_batch_is_bounded() -> None:
    assert choose_batch_size((512, 512, 512), 118) == 1
    assert choose_batch_size((1, 64, 64), 2) == 16


def test_windows_that_do_not_fit_together_go_one_after_the_other(make_case: MakeCase) -> None:
    case, asked = make_case((8, 16, 16)), []

    def scarce(patches: Tensor, corners: Corners, flipped: Sequence[int] = ()) -> Tensor:
        asked.append(len(patches))
        if len(patches) > 1:
            raise torch.OutOfMemoryError
        return patches

    def never(patches: Tensor, corners: Corners, flipped: Sequence[int] = ()) -> Tensor:
        raise torch.OutOfMemoryError

    numbers = {"patch_size": (8, 8, 8), "num_outputs": len(case.pixels), "batch_size": 4}
    assert np.array_equal(whole(scarce, case, **numbers), whole(identity, case, **numbers))
    assert asked[:3] == [4, 2, 1] and max(asked[3:]) == 1, "what does not fit is not tried again"
    with pytest.raises(torch.OutOfMemoryError):
        whole(never, case, **numbers)


def test_logits_make_room_for_a_window_that_needs_all_memory(make_case: MakeCase) -> None:
    case = make_case((8, 16, 16))
    numbers = {"patch_size": (8, 8, 8), "num_outputs": len(case.pixels)}
    with emulated() as device:
        failures = iter([True, True])  # of two windows, then of one

        def scarce(patches: Tensor, corners: Corners, flipped: Sequence[int] = ()) -> Tensor:
            assert isinstance(patches, Far)
            if next(failures, None):
                raise torch.OutOfMemoryError
            return patches

        slabs = list(predict_case(scarce, case, device=device, batch_size=2, **numbers))  # type: ignore[arg-type]
    assert not any(isinstance(slab, Far) for slab in slabs)
    assert np.allclose(torch.cat(slabs, dim=1).numpy(), whole(identity, case, **numbers))


def test_slabs_computed_ahead_are_the_same_and_errors_come_through() -> None:
    slabs = [torch.full((1, 1, 2, 2), float(number)) for number in range(4)]
    assert [int(slab.max()) for slab in ahead(iter(slabs))] == [0, 1, 2, 3]

    def broken() -> Iterator[Tensor]:
        yield slabs[0]
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        list(ahead(broken()))


@pytest.mark.parametrize("large", [1.0, 1e6])
def test_windows_that_float16_does_not_hold_are_predicted_in_float32(
    make_case: MakeCase, large: float
) -> None:
    case = make_case((6, 9, 8))
    weight = torch.full((len(case.pixels), 1, 1, 1, 1), large)
    kinds = []

    def predictor(patches: Tensor, corners: Corners, flipped: Sequence[int] = ()) -> Tensor:
        answer = torch.conv3d(patches, weight, groups=len(weight))
        kinds.append(answer.dtype)
        return answer.float() / large

    runtime = Runtime(device=torch.device("cpu"), precision="fp16")
    found = whole(predictor, case, patch_size=(4, 4, 4), num_outputs=len(weight), autocast=runtime.autocast)
    assert np.allclose(found, case.pixels, atol=1e-2)
    assert kinds[-1] == (torch.float16 if large == 1 else torch.float32)
