"""What a trainer does besides training, if the settings ask for it: telling what it does, and removing old samples."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from sf_server.run_folder import RunFolder
from sf_server.seeing.tensorboard import FOLDER, EventLog
from sf_server.settings import TrainSettings
from sf_server.store.retention import Retention
from sf_server.training.metrics import MetricsLog

Say = Callable[[str], None]


@contextmanager
def metrics_log(folder: RunFolder, settings: TrainSettings, *, after_step: int, say: Say) -> Iterator[MetricsLog]:
    """The metrics log, with `--tensorboard` as event files too; training goes on after `after_step`."""
    with ExitStack() as stack:
        mirror = None
        if settings.tensorboard:
            events = EventLog(
                folder.path / FOLDER, after_step=after_step, learning_rate=settings.learning_rate, say=say
            )
            mirror = stack.enter_context(events).write
        yield stack.enter_context(MetricsLog(folder.metrics_path, after_step=after_step, say=say, mirror=mirror))


def retention(folder: RunFolder, settings: TrainSettings, *, say: Say) -> Callable[[], object]:
    """What removes old samples when it is called between windows; does nothing without `--retention-days`."""
    if settings.retention_days is None:
        return bool
    return Retention(folder, days=settings.retention_days, clock=time.time, say=say).remove_expired
