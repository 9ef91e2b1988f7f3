"""Replicas by each framework's own engine, against the oracle on the joined batch."""

import numpy as np
import pytest
from replicas import CHANNELS, SCENARIOS, expected, run
from tolerance import assert_near


@pytest.mark.parametrize("count", [2, 3, 4])
def test_replicas_are_one_batch(count):
    results = run(count)

    # PyTorch's process groups: each goes on until it stops, and waits for nobody else.
    for rank, means in enumerate(results.pop("jobs that stop", [])):
        for mean in means.values():
            np.testing.assert_array_equal(mean, [0.5, 10.5][rank // 2])
    scenarios = [s for s in SCENARIOS if len(s.rows) == count]
    assert scenarios and list(results) == [s.name for s in scenarios]
    for scenario in scenarios:
        for found, one in zip(results[scenario.name], expected(scenario), strict=True):
            try:
                assert_replica_near(found, one, scenario)
            except AssertionError as error:
                raise AssertionError(f"{scenario.name}: {error}") from error


def collectives(scenario):
    """How many numbers each sum over replicas of a layer's training step has."""
    count, sums = len(scenario.rows) // scenario.jobs, scenario.synchronized
    if sums and scenario.arguments.get("virtual_batch_size") is None:
        forward = [5 * CHANNELS * count] * (2 if scenario.recomputed else 1)
        return [*forward, 2 * CHANNELS * (1 if sums is True else count)]
    return [5 * CHANNELS * count]


def assert_replica_near(found, one, scenario):
    renorm = "renorm" in scenario.arguments
    scale = 30.0 + (scenario.mean if renorm else 0.0)
    assert_near(found["y"], one["y"], scale=scale)
    assert_near(found["dx"], one["dx"], scale=scale)
    if scenario.twice:
        assert_near(found["d2x"], one["d2x"], scale=scale)
    if "dbeta" in found:
        # A replica's own; the engine averages or sums them.
        np.testing.assert_allclose(found["dbeta"], one["dbeta"], rtol=0, atol=2e-5)
    if "sums" in found and not scenario.compiled:
        assert found["sums"] == collectives(scenario)
    names = {name.rpartition("/")[2] for name in found["statistics"]}
    assert {"moving_mean", "moving_variance"} <= names
    for name, value in found["statistics"].items():
        assert_near(value, one["statistics"][name.rpartition("/")[2]], scale=2.0)
