"""The state of a run as Prometheus reads it: parsed back by Prometheus' own parser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from sf_server.seeing.prometheus import MAX_DEVICES, OTHERS, prometheus_text
from sf_server.seeing.reading import RunReader
from sf_server.seeing.state import RunState
from support.seen_run import SeenRun

NOW_S = 1_000_000.0
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[SeenRun]:
    made = SeenRun(tmp_path, now_s=NOW_S)
    yield made
    made.close()


def _state(run: SeenRun) -> RunState:
    with RunReader(run.path, clock=lambda: NOW_S) as reader:
        return reader.read()


def _parsed(state: RunState) -> Samples:
    families = list(text_string_to_metric_families(prometheus_text(state).decode()))
    assert all(family.documentation and family.type in {"gauge", "counter"} for family in families)
    found: Samples = {}
    for family in families:
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in found
            found[key] = sample.value
    return found


def test_every_number_is_scraped_with_its_name_and_unit(run: SeenRun) -> None:
    for name in ("pi-3", "phone"):
        run.hello(name)
        run.samples(name, 40)
    run.heard("pi-3", bytes_in=9000, rejected=2, malformed=1)
    run.steps(6, epoch=2, tokens=500)
    run.validation(epoch=1, accuracy=0.75, loss=0.5)
    found = _parsed(_state(run))
    wanted = {
        "splitfrozen_steps_total": 6, "splitfrozen_tokens_trained_total": 3000, "splitfrozen_samples_trained_total": 96,
        "splitfrozen_epoch": 2, "splitfrozen_epochs": 3, "splitfrozen_validation_accuracy_ratio": 0.75,
        "splitfrozen_last_step_timestamp_seconds": NOW_S, "splitfrozen_store_quota_bytes": 64 * 2**20,
    }  # fmt: skip
    assert {name: found[name, ()] for name in wanted} == wanted
    by_device = {
        "device_samples": 40, "device_received_bytes_total": 9000, "device_rejected_samples_total": 2,
        "device_malformed_messages_total": 1, "device_last_seen_timestamp_seconds": NOW_S,
    }  # fmt: skip
    pi = (("device", "pi-3"),)
    assert {name: found[f"splitfrozen_{name}", pi] for name in by_device} == by_device
    assert found["splitfrozen_store_samples", (("role", "train"),)] == 80
    assert found["splitfrozen_phase", (("phase", "stopped"),)] == 1
    assert found["splitfrozen_devices", (("status", "sending"),)] == 2
    assert found["splitfrozen_device_saved_flops_total", (("pass", "forward"),)] > 0


def test_what_nobody_knows_yet_is_left_out(run: SeenRun) -> None:
    names = {name for name, _ in _parsed(_state(run))}
    assert "splitfrozen_loss" not in names
    assert "splitfrozen_queue_lifted_samples" not in names
    assert "splitfrozen_steps_total" in names


def test_however_many_devices_there_are_the_series_are_bounded(run: SeenRun) -> None:
    run.hello("device")
    run.samples("device", 3)
    state = _state(run)
    one = state.devices[0]
    many = tuple(msgspec.structs.replace(one, name=f"d{n:05}", last_seen_s=float(n)) for n in range(MAX_DEVICES + 900))
    found = _parsed(msgspec.structs.replace(state, devices=many))
    labels = {labels for name, labels in found if name == "splitfrozen_device_samples"}
    assert len(labels) == MAX_DEVICES + 1
    others = (("device", OTHERS),)
    assert found["splitfrozen_device_samples", others] == 900 * 3
    assert found["splitfrozen_device_last_seen_timestamp_seconds", others] == MAX_DEVICES + 899
    assert sum(value for (name, _), value in found.items() if name == "splitfrozen_device_samples") == 3 * len(many)


def test_names_from_outside_cannot_break_the_format(run: SeenRun) -> None:
    state = _state(run)
    info = msgspec.structs.replace(state.run, base_model='a"b\\c\nd')
    found = _parsed(msgspec.structs.replace(state, run=info))
    assert any(dict(labels).get("base_model") == 'a"b\\c\nd' for _, labels in found)
