"""Reading the state of a run from its folder, again and again, without disturbing who works in it.

Nothing is locked, written or asked of another process. What was read once is remembered: a look at a run of any length costs
what happened since the last one.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Self

from sf_contract.errors import StoreError
from sf_contract.messages import Role
from sf_server.run_folder import RunFolder
from sf_server.seeing.devices import DeviceHistory, device_states
from sf_server.seeing.metrics_tail import MetricsSummary, MetricsTail
from sf_server.seeing.model_record import MODEL_RECORD_FILE
from sf_server.seeing.run_info import run_info
from sf_server.seeing.savings import savings, weighted_mean
from sf_server.seeing.state import (
    DeviceState,
    DeviceStatus,
    Phase,
    ProgressState,
    QueueState,
    RunInfo,
    RunState,
    SavingsState,
    StoreState,
)
from sf_server.store.store import Store
from sf_server.store.stored import DeviceSummary, Removals, RoleTotal
from sf_server.training.lifted import lifted_after

QUIET_S: Final = 5.0
QUIET_STEPS: Final = 3
"""With fewer samples than it wants and no step for so long, or for as long as so many steps take, the trainer waits."""


class RunReader:
    """Reads one run; use it in one thread, and close it (or use it as a context manager).

    Args:
        run: the run folder.
        clock: seconds since 1970.

    Raises:
        UsageError: there is no run in this folder.
        StoreError: its settings cannot be read.
    """

    def __init__(self, run: Path, *, clock: Callable[[], float]) -> None:
        self._folder = RunFolder(run)
        self._clock = clock
        self._record = self._folder.record()
        self._settings_mark: tuple[int, ...] | None = None
        self._info: RunInfo | None = None
        self._metrics = MetricsTail(self._folder.metrics_path)
        self._history = DeviceHistory()
        self._store: Store | None = None
        self._totals = _Totals()
        self._lifted = _Lifted(self._folder.lifted_path)

    def close(self) -> None:
        """Close the files."""
        self._metrics.close()
        if self._store is not None:
            self._store.close()
            self._store = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def read(self) -> RunState:
        """The state now.

        Raises:
            StoreError: the store or the settings cannot be read.
        """
        now_s = self._clock()
        info = self._run_info()
        summary = self._metrics.follow()
        store, summaries = self._store_state()
        devices = device_states(
            summaries,
            cuts={bundle.bundle_id: bundle.cut for bundle in info.bundles},
            history=self._history,
            now_s=now_s,
        )
        phase = self._phase(summary, store, devices, now_s)
        return RunState(
            taken_s=now_s,
            phase=phase,
            run=info,
            progress=self._progress(summary, store, now_s),
            loss_curve=summary.loss_curve(),
            validations=summary.validations(),
            devices=devices,
            store=store,
            queue=QueueState(untrained=_untrained(summary, store), lifted=self._lifted.count()),
            savings=_savings(info, summary, devices, store),
        )

    def _run_info(self) -> RunInfo:
        """What was asked for; read again when one of the files that tell it was replaced."""
        files = (self._folder.settings_path, self._folder.ingest_path, self._folder.path / MODEL_RECORD_FILE)
        mark = tuple(map(_changed_at, files))
        if self._info is None or mark != self._settings_mark:
            self._record = self._folder.record()
            ingest = self._folder.ingest_record()
            self._info = run_info(self._folder.path, self._record, address=None if ingest is None else ingest.address)
            self._settings_mark = mark
        return self._info

    def _store_state(self) -> tuple[StoreState, list[DeviceSummary]]:
        if self._store is None and self._folder.store_path.is_file():
            self._store = Store.open_read_only(self._folder.store_path)
        quota_bytes = self._record.settings.max_store_bytes
        if self._store is None:
            return _empty_store(quota_bytes), []
        totals = self._totals.of(self._store)
        size = self._store.size()
        state = StoreState(
            train_samples=totals[Role.TRAIN].samples,
            validation_samples=totals[Role.VALIDATION].samples,
            train_tokens=totals[Role.TRAIN].tokens,
            validation_tokens=totals[Role.VALIDATION].tokens,
            used_bytes=size.used_bytes,
            file_bytes=size.file_bytes,
            quota_bytes=quota_bytes,
        )
        return state, self._store.device_summaries()

    def _progress(self, summary: MetricsSummary, store: StoreState, now_s: float) -> ProgressState:
        last, settings = summary.last_step, self._record.settings
        if last is None:
            return ProgressState()
        whole = store.train_samples * settings.epochs
        return ProgressState(
            step=last.step,
            epoch=last.epoch,
            samples_trained=last.samples_trained,
            tokens_trained=summary.tokens,
            part_done=min(1.0, last.samples_trained / whole) if last.epoch > 1 and whole else None,
            loss=last.loss,
            learning_rate=settings.learning_rate * last.rate_factor,
            tokens_per_s=summary.tokens_per_s(now_s),
            skipped_steps=summary.skipped_steps,
            last_step_s=last.time_s,
        )

    def _phase(self, summary: MetricsSummary, store: StoreState, devices: Sequence[DeviceState], now_s: float) -> Phase:
        if self._folder.adapter_path.is_dir():
            return Phase.DONE
        if not is_worked_on(self._folder.lock_path):
            return Phase.STOPPED
        return Phase.WAITING if self._waits(summary, store, devices, now_s) else Phase.TRAINING

    def _waits(self, summary: MetricsSummary, store: StoreState, devices: Sequence[DeviceState], now_s: float) -> bool:
        """The first epoch lacks samples, more are expected, and no step was made for longer than a step takes."""
        settings, last = self._record.settings, summary.last_step
        is_short = _untrained(summary, store) < settings.window_samples or not settings.pool
        if not is_short or self._data_is_complete(store, devices) or (last is not None and last.epoch > 1):
            return False
        if last is None or last.time_s is None:
            return True
        return now_s - last.time_s > max(QUIET_S, QUIET_STEPS * last.seconds)

    def _data_is_complete(self, store: StoreState, devices: Sequence[DeviceState]) -> bool:
        """As the trainer sees it: what was removed counts as arrived, and forgotten devices as finished."""
        settings = self._record.settings
        removed = Removals() if self._store is None else self._store.removals()
        if settings.expect_devices is not None:
            finished = sum(device.status is DeviceStatus.FINISHED for device in devices)
            return finished + len(removed.banned) >= settings.expect_devices
        return store.train_samples + removed.train_samples >= (settings.expect_samples or 0)


class _Totals:
    """Samples by role, counted once: later only new ones are, unless some were removed."""

    def __init__(self) -> None:
        self._totals = {role: RoleTotal(0, 0, 0) for role in Role}

    def of(self, store: Store) -> dict[Role, RoleTotal]:
        former = self._totals
        self._totals = _added(former, store.totals(after_seq=max(total.last_seq for total in former.values())))
        if sum(total.samples for total in self._totals.values()) != store.sample_count():
            self._totals = store.totals()
        return self._totals


class _Lifted:
    """Lifted samples, counted as they are added; from the start when the file was made anew."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._count = 0
        self._highest = 0

    def count(self) -> int | None:
        """How many there are; None where nothing is lifted, or the file is just being made."""
        if not self._path.is_file():
            return None
        try:
            new, highest = lifted_after(self._path, self._highest)
            if highest < self._highest:
                self._count = 0
                new, highest = lifted_after(self._path, 0)
        except StoreError:
            return None
        self._count, self._highest = self._count + new, highest
        return self._count


def _added(former: dict[Role, RoleTotal], new: dict[Role, RoleTotal]) -> dict[Role, RoleTotal]:
    return {
        role: RoleTotal(
            samples=total.samples + new[role].samples,
            tokens=total.tokens + new[role].tokens,
            last_seq=max(total.last_seq, new[role].last_seq),
        )
        for role, total in former.items()
    }


def is_worked_on(lock_path: Path) -> bool:
    """True while a supervisor or one of its children lives.

    The lock is asked for, shared with others who ask, and given back at once; a supervisor that starts in this very moment
    waits longer than that.
    """
    try:
        descriptor = os.open(lock_path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _savings(info: RunInfo, summary: MetricsSummary, devices: Sequence[DeviceState], store: StoreState) -> SavingsState:
    by_cut = {bundle.cut: bundle for bundle in info.bundles}
    shares = [
        (by_cut[device.cut].forward_flops_per_token, float(device.samples))
        for device in devices
        if device.cut in by_cut
    ]
    tokens = store.train_tokens + store.validation_tokens
    return savings(
        flops_per_token=weighted_mean(shares),
        is_estimated=not all(bundle.layer_weights_known for bundle in info.bundles),
        bytes_per_token=sum(device.bytes_in for device in devices) / tokens if tokens else 0.0,
        tokens_trained=summary.tokens,
        later_tokens=summary.later_tokens,
    )


def _untrained(summary: MetricsSummary, store: StoreState) -> int:
    last = summary.last_step
    if last is None:
        return store.train_samples
    return max(0, store.train_samples - last.samples_trained) if last.epoch == 1 else 0


def _empty_store(quota_bytes: int) -> StoreState:
    return StoreState(
        train_samples=0,
        validation_samples=0,
        train_tokens=0,
        validation_tokens=0,
        used_bytes=0,
        file_bytes=0,
        quota_bytes=quota_bytes,
    )


def _changed_at(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0
