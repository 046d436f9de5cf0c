"""A rank leaves when the launcher that started it is gone, however that went."""

from __future__ import annotations

import os
import select
import threading

from sf_server.supervision.parent import EXIT_ORPHANED


def leave_with_launcher() -> None:
    """Watch the process that started this one, and end at once when it ends. Nothing is saved: what matters is durable."""
    launcher = os.pidfd_open(os.getppid())
    threading.Thread(target=_wait_for_end, args=(launcher,), name="leave-with-launcher", daemon=True).start()


def _wait_for_end(process: int) -> None:
    select.select([process], [], [])
    os._exit(EXIT_ORPHANED)
