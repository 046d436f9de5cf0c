"""The launcher: starts the trainer processes of one node and ends them together.

It is torch's elastic launcher, the one behind `torchrun`, kept to one node and without restarts of its own: when a process
dies all end, and the supervisor starts all again from the last checkpoint. Nodes find one another by themselves.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from sf_contract.command import ArgumentParser, run_command, say
from sf_server.run_folder import RunFolder
from sf_server.scale.place import processes_of_node
from sf_server.supervision.parent import leave_with_parent
from sf_server.supervision.restarts import describe_exit

SAVE_S: Final = 110
"""A little less than the supervisor grants the launcher itself."""

EXIT_TERMINATED: Final = 143
WATCH_EVERY_S: Final = 0.1
NO_SERVER: Final = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
"""Set to 1, the launcher opens no port; it would listen on all addresses of the machine."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the trainer processes; 0 when all end well, else the exit code of the first that did not, 143 after SIGTERM."""
    return run_command("sf-server train", _launch, argv)


def _launch(arguments: Sequence[str]) -> int:
    parser = ArgumentParser(prog="sf-server launcher", description="Start the trainer processes of a node.")
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="run folder")
    parser.add_argument("--json", action="store_true", help="errors as JSON")
    options = parser.parse_args(arguments)
    leave_with_parent()
    os.environ[NO_SERVER] = "1"
    logging.disable(logging.CRITICAL)  # what happened to a process is told here, in words of ours
    settings = RunFolder(options.run).settings()
    with tempfile.TemporaryDirectory(prefix="splitfrozen-") as folder:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes_of_node(settings),
            rdzv_backend="c10d",
            rdzv_endpoint=f"{folder}/launcher",
            rdzv_configs={"store_type": "file"},
            run_id="node",
            max_restarts=0,
            monitor_interval=WATCH_EVERY_S,
            shutdown_timeout=SAVE_S,
        )
        meeting = f"tcp://{settings.rendezvous}" if settings.nodes > 1 else f"file://{folder}/ranks"
        command = ["-m", "sf_server.training.process", "--run", str(options.run), "--meeting", meeting]
        return _run(config, [*command, *(["--json"] if "json" in options else [])])


def _run(config: LaunchConfig, command: Sequence[str]) -> int:
    try:
        elastic_launch(config, sys.executable)(*command)
    except ChildFailedError as problem:
        return _exit_code(*problem.get_first_failure())
    except SignalException as problem:
        return EXIT_TERMINATED if problem.sigval == signal.SIGTERM else 128 + problem.sigval
    return 0


def _exit_code(rank: int, failure: ProcessFailure) -> int:
    """What the first process ended with; told here when it could not say so itself."""
    if failure.exitcode < 0:
        say(
            f"sf-server train: trainer process {rank} of this node ended unexpectedly ({describe_exit(failure.exitcode)})"
        )
        return 128 - failure.exitcode
    return failure.exitcode


if __name__ == "__main__":
    sys.exit(main())
