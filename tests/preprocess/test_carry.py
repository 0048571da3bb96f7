"""Maps along axes: what they move where, and that likeness finds them."""

import numpy as np
import pytest

from medplan.preprocess.carry import AxisMap, align_bodies, body_box, refine

MM = (5.0, 3.0, 3.0)
RNG = np.random.default_rng(0)


def scan(shape=(20, 40, 40), shift=(0, 0, 0)):
    """Return a body with two organs, moved by whole voxels."""
    z, y, x = (np.arange(n) - s for n, s in zip(shape, shift, strict=True))
    z, y, x = z[:, None, None], y[None, :, None], x[None, None, :]
    body = (abs(z - 10) < 8) & ((y - 20) ** 2 + (x - 20) ** 2 < 15**2)
    organ = (z - 11) ** 2 / 9 + (y - 15) ** 2 / 16 + (x - 25) ** 2 / 36 < 1
    other = (z - 6) ** 2 / 4 + (y - 26) ** 2 / 9 + (x - 14) ** 2 / 25 < 1
    return (body + 1.5 * organ + 2.5 * other).astype(np.float32), organ


def test_the_identity_changes_nothing_and_outside_is_zero():
    volume = scan()[0]
    same = AxisMap((1.0,) * 3, (0.0,) * 3)
    assert np.allclose(same.carry(volume, volume.shape), volume, atol=1e-6)
    assert not AxisMap((1.0,) * 3, (0.0, 0.0, 100.0)).carry(volume, volume.shape).any()


def test_a_change_of_scale_keeps_the_centre_where_it_was():
    start = AxisMap((1.0, 2.0, 1.0), (3.0, -4.0, 0.0))
    changed = start.changed(1, share=0.1, shift=0.0, centre=7.0)
    assert changed.scale[1] == pytest.approx(2.2)
    assert changed.scale[1] * 7 + changed.offset[1] == pytest.approx(start.scale[1] * 7 + start.offset[1])
    assert changed.scale[0] == 1.0 and changed.offset[0] == 3.0


def test_bodies_of_other_sizes_are_brought_onto_each_other():
    small = scan()[0]
    large = np.repeat(np.repeat(small, 2, axis=1), 2, axis=2)
    mapping = align_bodies(large, small)
    assert mapping.scale == pytest.approx((1.0, 0.5, 0.5), abs=0.03)
    assert body_box(small)[0] == (3, 17)


@pytest.mark.parametrize("shift", [(3, 0, 0), (-2, 4, -5), (0, 0, 0)])
def test_likeness_finds_a_shift(shift):
    target, organ = scan(shift=shift)
    source, mask = scan()
    same = AxisMap((1.0,) * 3, (0.0,) * 3)
    found, _ = refine(same, target, source, target_mm=MM, source_mm=MM)
    carried = found.carry(mask.astype(np.float32), target.shape) > 0.5
    assert 2 * (carried & organ).sum() / (carried.sum() + organ.sum()) > 0.85


def test_with_a_weight_only_its_surroundings_count():
    source, mask = scan()
    target = np.zeros_like(source)
    # One organ lies elsewhere relative to everything else.
    body, _ = scan()
    target[:] = np.minimum(body, 1)
    target[np.roll(mask, 3, axis=2)] += 1.5
    same = AxisMap((1.0,) * 3, (0.0,) * 3)
    found, _ = refine(same, target, source, target_mm=MM, source_mm=MM, weight=mask.astype(np.float32) + 0.01)
    assert found.offset[2] + 25 * found.scale[2] == pytest.approx(25 - 3, abs=1.5)


def test_scans_of_one_value_leave_the_map_as_it_was():
    start = AxisMap((1.0,) * 3, (1.0, 0.0, 0.0))
    flat = np.ones((4, 8, 8), np.float32)
    assert refine(start, flat, flat, target_mm=MM, source_mm=MM)[0] == start
