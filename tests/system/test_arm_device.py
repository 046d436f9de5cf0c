"""EMULATED ARM: a whole `sf-edge run` as an aarch64 process against this machine's own ingest, beside a native run.

Skipped where `sf-bench arm-setup` was not run.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sf_bench.arm.device import compare_devices
from sf_bench.arm.profiles import PROFILES
from sf_bench.arm.toolkit import Toolkit, ToolMissing, default_folder, open_toolkit
from sf_edge.outbox.queue import read_outbox_status
from support.processes import stored_rows

pytestmark = pytest.mark.slow

ROWS = 40


@pytest.fixture(scope="module")
def toolkit() -> Toolkit:
    try:
        return open_toolkit(default_folder())
    except ToolMissing as problem:
        pytest.skip(f"{problem.what}; {problem.cure}")


def test_an_emulated_device_delivers_what_a_native_one_does(toolkit: Toolkit, tiny_bundle: Path, tmp_path: Path):
    rows = [
        {"text": f"turn the light {word} {number}", "label": word} for number in range(20) for word in ("on", "off")
    ]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    work = tmp_path / "work"
    said: list[str] = []
    (result,) = compare_devices(
        tiny_bundle, data, profiles=(PROFILES["pi4"],), toolkit=toolkit, work=work, say=said.append
    )
    assert result.samples == len(rows) == ROWS
    assert result.mean_error <= result.limit
    stored = stored_rows(work / "run")
    emulated = [row[2:] for row in stored if row[0] == "pi4"]
    assert emulated == [row[2:] for row in stored if row[0] == "native"]
    assert [ordinal for ordinal, _, _ in emulated] == list(range(ROWS))
    status = read_outbox_status(work / "outbox-pi4")
    assert (status.waiting_samples, status.counters.samples, status.counters.forward_passes) == (0, ROWS, ROWS)
    assert "pi4 computes" in said[1]
