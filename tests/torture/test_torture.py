"""A short torture, as part of the tests; `make torture` runs the long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from sf_bench.link_script import Kind
from torture.faults import Fault, draw_plan
from torture.torture import DEVICES, run_torture

FAULTS = 60


def test_the_same_seed_draws_the_same_faults_and_another_one_others() -> None:
    plan = draw_plan(1, faults=1000, devices=DEVICES, link_kinds=tuple(Kind))
    assert plan == draw_plan(1, faults=1000, devices=DEVICES, link_kinds=tuple(Kind))
    assert plan != draw_plan(2, faults=1000, devices=DEVICES, link_kinds=tuple(Kind))
    assert plan.faults == 1000
    drawn = {fault.kind for faults in (plan.server, *plan.devices) for fault in faults}
    assert drawn == {*Fault, *Kind}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_no_sample_is_lost_or_stored_twice_through_some_dozens_of_faults(tmp_path: Path) -> None:
    outcome = run_torture(tmp_path, seed=1, faults=FAULTS)
    print(outcome.line)
    assert outcome.problems == ()
    assert f"{FAULTS} faults" in outcome.line
