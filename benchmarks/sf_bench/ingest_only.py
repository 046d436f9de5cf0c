"""The server's ingest process without a trainer: what devices need to be measured against a real server."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from sf_contract.bundle import Bundle
from sf_contract.errors import ServerUnreachable
from sf_server.run_folder import RunFolder
from sf_server.settings import TrainSettings

_POLL_S: Final = 0.05


@contextmanager
def running_ingest(
    bundle: Bundle, run: RunFolder, *, settings: TrainSettings | None = None, python_options: Sequence[str] = ()
) -> Iterator[str]:
    """A new run's ingest on a free port of the loopback address; yields the address.

    Args:
        settings: of the run, in place of `usual_settings`.
        python_options: for its interpreter.

    Raises:
        ServerUnreachable: it ended at once.
    """
    run.path.mkdir(parents=True, exist_ok=True)
    run.create(settings or usual_settings(bundle, run), bundle_ids=(bundle.bundle_id,))
    command = [sys.executable, *python_options, "-m", "sf_server.ingest.process", "--run", str(run.path)]
    with (run.path.parent / "ingest.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log)
        try:
            yield _address(run, process)
        finally:
            process.terminate()
            process.wait()  # before its pipe is closed, which would end it in the middle of whatever it does
            process.communicate()


def usual_settings(bundle: Bundle, run: RunFolder) -> TrainSettings:
    """Defaults, on a free port of the loopback address."""
    return TrainSettings(
        bundle=str(bundle.folder.resolve()), run=str(run.path), bind="tcp://127.0.0.1:*", expect_devices=1
    )


def _address(run: RunFolder, process: subprocess.Popen[bytes]) -> str:
    while (record := run.ingest_record()) is None:
        if process.poll() is not None:
            raise ServerUnreachable(
                f"the ingest process ended with {process.returncode} before it received devices",
                cure="start it by hand to see why: sf-server train",
            )
        time.sleep(_POLL_S)
    return record.address
