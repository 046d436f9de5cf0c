from __future__ import annotations

import sys
from pathlib import Path

import pytest
import results
from labelled import LabelledText
from monitor import WatchedDevice
from processes import Crew
from reports import Metrics, MetricsLine, StoredDevice
from summary import ServerResult

from sf_contract.errors import DataError


def test_the_accuracy_of_both_front_ends_stands_beside_the_floor() -> None:
    rows = [LabelledText("t", label) for label in "aaab"]
    found = results.accuracy(
        '{"bundle": {"accuracy": 0.5, "loss": 1.0}, "fp32": {"accuracy": 0.75}}', rows, templates_unseen=True
    )
    assert (found.rows, found.bundle, found.fp32, found.majority_class) == (4, 0.5, 0.75, 0.75)


def test_the_servers_side_of_the_accounts_comes_from_its_store_and_its_trainer() -> None:
    devices = [StoredDevice("phone-1", samples=300, repeats=0), StoredDevice("phone-2", samples=299, repeats=2)]
    metrics = Metrics(step=MetricsLine(samples_trained=1620), validation=MetricsLine(samples=59))
    assert results.server_result(devices, metrics, epochs=3) == ServerResult(
        epochs=3, samples_stored=599, repeats=2, samples_held_out=59, samples_trained=1620
    )


def test_a_count_that_one_device_lacks_is_not_known_for_all() -> None:
    devices = [StoredDevice("phone-1", samples=300), StoredDevice("phone-2")]
    assert results.server_result(devices, Metrics(), epochs=3).samples_stored is None


def test_a_devices_result_is_its_own_report(tmp_path: Path) -> None:
    report = (
        '{"forward_passes": 7, "uploaded_samples": 7, "resent_samples": 0, "cpu_seconds": 1.5, "wall_seconds": 2.0}'
    )
    with Crew(tmp_path) as crew:
        child = crew.start("phone-1", [Path(sys.executable).name, "-c", f"print({report!r})"])
        crew.wait_until(lambda: not child.is_running)
    device = WatchedDevice(name="phone-1", labels=("a",), child=child)
    result = results.device_result(device, rows=8)
    assert (result.rows, result.forward_passes, result.uploads, result.repeated_uploads) == (8, 7, 7, 0)
    assert (result.cpu_s, result.bytes_up) == (1.5, None)


def test_a_device_that_reported_nothing_is_named(tmp_path: Path) -> None:
    with Crew(tmp_path) as crew:
        child = crew.start("phone-1", [Path(sys.executable).name, "-c", "pass"])
        crew.wait_until(lambda: not child.is_running)
    with pytest.raises(DataError, match="phone-1"):
        results.device_result(WatchedDevice(name="phone-1", labels=("a",), child=child), rows=8)
