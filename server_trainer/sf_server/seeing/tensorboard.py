"""TensorBoard event files of a run, written beside its metrics log. The one door to tensorboardX."""

from __future__ import annotations

import importlib.util
import math
import struct
import time
from collections.abc import Callable, Mapping
from io import FileIO
from pathlib import Path
from typing import Any, Final, Self

from sf_contract.errors import UsageError

FOLDER: Final = "tensorboard"
EXTRA: Final = "tensorboard"
_LIBRARY: Final = "tensorboardX"
_FILE_VERSION: Final = "brain.Event:2"
_CRC_MASK: Final = 0xA282EAD8
VALIDATION_SCALARS: Final = ("accuracy", "loss", "perplexity", "floor")


def check_tensorboard() -> None:
    """Refuse `--tensorboard` where its library is missing.

    Raises:
        UsageError: see above.
    """
    if importlib.util.find_spec(_LIBRARY) is None:
        raise UsageError(
            f"--tensorboard needs the package {_LIBRARY}, which is not installed",
            cure=f"pip install 'splitfrozen[{EXTRA}]', or train without it: metrics.jsonl has the same numbers",
        )


class EventLog:
    """Writes entries of the metrics log as TensorBoard scalars, each at once.

    Every start begins a file of its own, whose second event tells readers to drop what earlier files hold of later steps: that
    work was lost and is done again. Where there is no room for an event it is left out, and training goes on.

    Args:
        folder: made when it is missing.
        after_step: the step that training goes on from.
        learning_rate: the peak, which `rate_factor` of an entry is a part of.
        say: told once when there is no room.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        folder: Path,
        *,
        after_step: int,
        learning_rate: float,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        # An optional library, without type information.
        from tensorboardX.proto import event_pb2, summary_pb2  # type: ignore[import-untyped]  # noqa: PLC0415

        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._learning_rate = learning_rate
        self._say = say
        self._clock = clock
        self._has_said = False
        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        self._file = _new_file(folder, clock())
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._append(self._event(wall_time=clock(), file_version=_FILE_VERSION))
        self._append(self._event(wall_time=clock(), step=after_step + 1, session_log=start))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: object) -> None:
        self._file.close()

    def write(self, entry: Mapping[str, object]) -> None:
        """The scalars of one entry, if it has any."""
        values = scalars(entry, learning_rate=self._learning_rate)
        if values:
            summary = self._summary(
                value=[self._summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
            )
            self._append(self._event(wall_time=self._clock(), step=int(_number(entry.get("step"))), summary=summary))

    def _append(self, event: Any) -> None:
        end = self._file.tell()
        try:
            _write_all(self._file, _record(event.SerializeToString()))
        except OSError as problem:
            self._file.truncate(end)
            self._file.seek(end)
            if not self._has_said:
                self._say(f"{self._folder}: events are left out ({problem.strerror}); metrics.jsonl will have them")
            self._has_said = True


def _new_file(folder: Path, now_s: float) -> FileIO:
    """A new file, named as TensorBoard expects it; names sort by time."""
    taken = len(list(folder.iterdir()))
    path = folder / f"events.out.tfevents.{int(now_s):010d}.{taken:06d}"
    return FileIO(path, "xb")


def _record(content: bytes) -> bytes:
    """A TFRecord: length and content, each with its masked CRC-32C behind it."""
    length = struct.pack("<Q", len(content))
    return length + _masked_crc(length) + content + _masked_crc(content)


def _masked_crc(content: bytes) -> bytes:
    from tensorboardX.crc32c import crc32c  # type: ignore[import-untyped]  # noqa: PLC0415

    value = crc32c(content)
    return struct.pack("<I", ((value >> 15 | value << 17) + _CRC_MASK) & 0xFFFFFFFF)


def _write_all(file: FileIO, content: bytes) -> None:
    written = 0
    while written < len(content):
        written += file.write(content[written:])


def scalars(entry: Mapping[str, object], *, learning_rate: float) -> dict[str, float]:
    """Scalars of an entry of the metrics log by their tag in TensorBoard."""
    match entry.get("kind"):
        case "step":
            seconds = max(_number(entry.get("seconds")), 1e-9)
            return {
                "train/loss": _number(entry.get("loss")),
                "train/gradient_norm": _number(entry.get("gradient_norm")),
                "train/learning_rate": learning_rate * _number(entry.get("rate_factor")),
                "train/tokens_per_s": _number(entry.get("tokens")) / seconds,
                "train/epoch": _number(entry.get("epoch")),
            }
        case "validation":
            return {f"validation/{name}": _number(entry.get(name)) for name in VALIDATION_SCALARS}
        case _:
            return {}


def _number(value: object) -> float:
    return value if isinstance(value, int | float) else math.nan
