"""A child process leaves when its supervisor is gone, however the supervisor went."""

from __future__ import annotations

import os
import stat
import threading
from typing import Final

EXIT_ORPHANED: Final = 129
STDIN: Final = 0


def leave_with_parent() -> None:
    """Watch the pipe on standard input and end this process at once when its other end closes.

    Nothing is saved: everything that matters is durable already. Without a pipe (started by hand) nothing is watched.
    """
    if stat.S_ISFIFO(os.fstat(STDIN).st_mode):
        threading.Thread(target=_wait_for_end, name="leave-with-parent", daemon=True).start()


def _wait_for_end() -> None:
    while os.read(STDIN, 1):
        pass
    os._exit(EXIT_ORPHANED)
