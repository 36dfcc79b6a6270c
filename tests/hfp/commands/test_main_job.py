"""The README's first command, whole."""

import pytest

from hfp import Experiment, simulate


@pytest.mark.slow
def test_the_default_run_ends_above_90_percent():
    run = simulate(Experiment())
    assert (run.experiment.dataset, run.experiment.rank, len(run.history)) == ("digits", 1, 30)
    assert run.accuracy > 90
    assert run.bytes_up < 0.5 * run.full_cost.bytes_up
