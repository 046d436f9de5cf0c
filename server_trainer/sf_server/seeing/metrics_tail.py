"""Following a metrics log: what was appended since the last look, and what all of it says so far."""

from __future__ import annotations

import json
import math
import os
from collections import deque
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from sf_server.seeing.curves import LossCurve
from sf_server.seeing.state import CurvePoint, ValidationPoint

STEP: Final = "step"
VALIDATION: Final = "validation"
RATE_SPAN_S: Final = 60.0
MAX_VALIDATIONS: Final = 400
_CHUNK_BYTES: Final = 1 << 20


class MetricsLine(msgspec.Struct, frozen=True):
    """One line of `metrics.jsonl`, as far as it is shown; other keys are left alone."""

    kind: str = ""
    step: int = 0
    epoch: int = 0
    loss: float = math.nan
    rate_factor: float = 0.0
    samples: int = 0
    tokens: int = 0
    seconds: float = 0.0
    skipped: bool = False
    samples_trained: int = 0
    accuracy: float = 0.0
    floor: float = 0.0
    time_s: float | None = None


class MetricsSummary:
    """What the lines so far say; bounded, however many they are."""

    def __init__(self) -> None:
        self.last_step: MetricsLine | None = None
        self.skipped_steps = 0
        self.tokens = 0
        self.later_tokens = 0
        self._curve = LossCurve()
        self._validations: deque[ValidationPoint] = deque(maxlen=MAX_VALIDATIONS)
        self._recent: deque[MetricsLine] = deque()

    def add(self, line: MetricsLine) -> None:
        """One more line."""
        if line.kind == STEP:
            self._add_step(line)
        elif line.kind == VALIDATION:
            self._validations.append(
                ValidationPoint(
                    step=line.step,
                    epoch=line.epoch,
                    samples=line.samples,
                    loss=line.loss,
                    accuracy=line.accuracy,
                    floor=line.floor,
                )
            )

    def loss_curve(self) -> tuple[CurvePoint, ...]:
        """Loss over steps."""
        return self._curve.points()

    def validations(self) -> tuple[ValidationPoint, ...]:
        """The newest validations, oldest first."""
        return tuple(self._validations)

    def tokens_per_s(self, now_s: float) -> float | None:
        """Over the last minute, or since the first step when that is less; None when no line says its time."""
        while self._recent and now_s - (self._recent[0].time_s or 0.0) > RATE_SPAN_S:
            self._recent.popleft()
        if not self._recent:
            return None if self.last_step is None or self.last_step.time_s is None else 0.0
        first = self._recent[0]
        began_s = (first.time_s or 0.0) - first.seconds
        span_s = min(RATE_SPAN_S, max(now_s - began_s, 1e-3))
        return sum(line.tokens for line in self._recent) / span_s

    def _add_step(self, line: MetricsLine) -> None:
        self.last_step = line
        self.skipped_steps += line.skipped
        self.tokens += line.tokens
        self.later_tokens += line.tokens if line.epoch > 1 else 0
        if math.isfinite(line.loss):
            self._curve.add(step=line.step, epoch=line.epoch, loss=line.loss)
        if line.time_s is not None:
            self._recent.append(line)
            while line.time_s - (self._recent[0].time_s or 0.0) > RATE_SPAN_S:
                self._recent.popleft()


class MetricsTail:
    """Reads a metrics log as it grows; each byte once, unless a resumed trainer has dropped lines of it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._inode = 0
        self._rest = b""
        self.summary = MetricsSummary()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def follow(self) -> MetricsSummary:
        """Take in what is new; the summary of everything."""
        if self._was_replaced() or not self._take_new():
            self._begin()
            self._take_new()
        return self.summary

    def _take_new(self) -> bool:
        """Read to the end; False when a step comes again: the trainer has dropped lines and gone on from an earlier step."""
        while self._file is not None and (chunk := self._file.read(_CHUNK_BYTES)):
            *lines, self._rest = (self._rest + chunk).split(b"\n")
            for line in filter(None, map(_decoded, lines)):
                last = self.summary.last_step
                if line.kind == STEP and last is not None and line.step <= last.step:
                    return False
                self.summary.add(line)
        return True

    def _was_replaced(self) -> bool:
        try:
            status = self._path.stat()
        except FileNotFoundError:
            return self._file is not None
        return self._file is None or status.st_ino != self._inode or status.st_size < self._file.tell()

    def _begin(self) -> None:
        self.close()
        self._rest, self.summary = b"", MetricsSummary()
        try:
            self._file = self._path.open("rb")
        except FileNotFoundError:
            return
        self._inode = os.fstat(self._file.fileno()).st_ino


_decoder: Final = msgspec.json.Decoder(MetricsLine)


def _decoded(raw: bytes) -> MetricsLine | None:
    """A line; None for one that is damaged. Losses that are not finite are written as JSON does not know them."""
    try:
        return _decoder.decode(raw)
    except msgspec.DecodeError:
        pass
    try:
        return msgspec.convert(json.loads(raw), MetricsLine)
    except (ValueError, msgspec.ValidationError):
        return None
