"""TensorBoard event files: read back as TensorBoard reads them, over restarts, without anything twice."""

from __future__ import annotations

import importlib.util
import math
import struct
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.crc32c import crc32c
from tensorboardX.proto.event_pb2 import Event, SessionLog

from sf_contract.errors import UsageError
from sf_server.run_folder import RunFolder
from sf_server.seeing.tensorboard import FOLDER, EventLog, check_tensorboard, scalars
from sf_server.settings import TrainSettings
from sf_server.training.duties import metrics_log

RATE = 2e-3
Series = dict[str, list[tuple[int, float]]]


def _step(step: int, loss: float = 0.5) -> dict[str, object]:
    return {
        "kind": "step", "step": step, "epoch": 1, "loss": loss, "gradient_norm": 1.5, "rate_factor": 0.5, "samples": 4,
        "tokens": 100, "seconds": 0.5, "skipped": False, "samples_trained": 4 * step,
    }  # fmt: skip


def _masked(content: bytes) -> int:
    value = crc32c(content)
    return ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _events(path: Path) -> Iterator[Event]:
    """The events of a file, every checksum looked at (TFRecord: length, its CRC, content, its CRC)."""
    raw = path.read_bytes()
    while raw:
        (nbytes, length_crc) = struct.unpack_from("<QI", raw)
        content = raw[12 : 12 + nbytes]
        (content_crc,) = struct.unpack_from("<I", raw, 12 + nbytes)
        assert (length_crc, content_crc) == (_masked(raw[:8]), _masked(content))
        yield Event.FromString(content)
        raw = raw[16 + nbytes :]


def _series(folder: Path) -> Series:
    """All files in the order of their names; a file's start drops earlier events of its step and later ones."""
    found: Series = {}
    for path in sorted(folder.iterdir()):
        for event in _events(path):
            if event.session_log.status == SessionLog.START:
                found = {tag: [p for p in points if p[0] < event.step] for tag, points in found.items()}
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    (tmp_path / "run").mkdir()
    return RunFolder(tmp_path / "run")


def _settings(folder: RunFolder, *, tensorboard: bool = True) -> TrainSettings:
    return TrainSettings(
        bundle="b", run=str(folder.path), expect_samples=1, tensorboard=tensorboard, learning_rate=RATE
    )


def _write(folder: RunFolder, entries: list[dict[str, object]], *, after_step: int) -> None:
    with metrics_log(folder, _settings(folder), after_step=after_step, say=pytest.fail) as log:
        for entry in entries:
            log.write(entry)


def test_steps_and_validations_are_read_back(folder: RunFolder) -> None:
    validation = {"kind": "validation", "epoch": 1, "step": 2, "accuracy": 0.75, "loss": 0.25, "perplexity": 1.3,
                  "floor": 0.5, "samples": 8, "by_device": {}}  # fmt: skip
    _write(folder, [_step(1), _step(2, loss=0.25), validation], after_step=0)
    found = _series(folder.path / FOLDER)
    assert found["train/loss"] == [(1, 0.5), (2, 0.25)]
    assert found["train/tokens_per_s"] == [(1, 200.0), (2, 200.0)]
    assert found["train/learning_rate"] == [(1, pytest.approx(1e-3)), (2, pytest.approx(1e-3))]
    assert found["validation/accuracy"] == [(2, 0.75)]
    assert found["validation/loss"] == [(2, 0.25)]
    assert len(folder.metrics_path.read_text().splitlines()) == 3


def test_an_event_is_in_the_file_before_the_next_step(folder: RunFolder) -> None:
    with metrics_log(folder, _settings(folder), after_step=0, say=pytest.fail) as log:
        log.write(_step(1))
        assert _series(folder.path / FOLDER)["train/loss"] == [(1, 0.5)]


def test_a_resumed_run_has_every_step_once_even_within_the_same_second(folder: RunFolder) -> None:
    _write(folder, [_step(step, loss=1.0) for step in range(1, 9)], after_step=0)
    _write(folder, [_step(step, loss=2.0) for step in range(6, 11)], after_step=5)
    assert len(list((folder.path / FOLDER).iterdir())) == 2
    wanted = [(step, 1.0 if step <= 5 else 2.0) for step in range(1, 11)]
    assert _series(folder.path / FOLDER)["train/loss"] == wanted


def test_nothing_is_written_unless_asked_for(folder: RunFolder) -> None:
    with metrics_log(folder, _settings(folder, tensorboard=False), after_step=0, say=pytest.fail) as log:
        log.write(_step(1))
    assert not (folder.path / FOLDER).exists()


class FullDisk(FileIO):
    """A file for which there is room for some bytes only."""

    room = 10**9

    def write(self, content: Any, /) -> int:
        fitting = min(len(content), self.room)
        if not fitting:
            raise OSError(28, "No space left on device")
        self.room -= fitting
        return super().write(content[:fitting])


def test_where_there_is_no_room_events_are_left_out_and_the_file_stays_whole(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("sf_server.seeing.tensorboard.FileIO", FullDisk)
    said: list[str] = []
    with EventLog(tmp_path / "events", after_step=0, learning_rate=RATE, say=said.append) as log:
        log.write(_step(1))
        log._file.room = 30
        log.write(_step(2))
        log.write(_step(3))
        log._file.room = 10**9
        log.write(_step(4))
    assert len(said) == 1
    assert "No space left on device" in said[0]
    assert [step for step, _ in _series(tmp_path / "events")["train/loss"]] == [1, 4]


def test_a_loss_that_is_no_number_is_shown_as_one() -> None:
    assert math.isnan(scalars(_step(1, loss=math.nan), learning_rate=RATE)["train/loss"])
    assert scalars({"kind": "something else", "step": 1}, learning_rate=RATE) == {}


def test_a_missing_library_is_named_with_the_extra_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    check_tensorboard()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="tensorboardX") as problem:
        check_tensorboard()
    assert "splitfrozen[tensorboard]" in problem.value.cure
