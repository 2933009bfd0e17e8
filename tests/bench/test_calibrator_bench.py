"""The bench of quantizing's parts."""

from __future__ import annotations

from halfbyte.bench.calibrator import measure
from halfbyte.kernels.calibrator import PlainCalibrator


def test_every_part_of_every_shape_is_measured() -> None:
    costs = list(measure(PlainCalibrator(), [(8, 64), (4, 128)], 200, 1))
    assert len(costs) == 8
    assert {cost.shape for cost in costs} == {(200, 64), (8, 64), (200, 128), (4, 128)}
    assert all(cost.plain >= 0 and cost.compiled >= 0 for cost in costs)
    assert max(cost.plain for cost in costs) > 0
