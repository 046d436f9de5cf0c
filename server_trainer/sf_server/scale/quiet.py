"""What torch's C++ side says when a peer is gone: twenty lines of stack, beside the one line that the process says itself."""

from __future__ import annotations

import os
from typing import Final

CPP_LOG_LEVEL: Final = "TORCH_CPP_LOG_LEVEL"


def keep_libraries_quiet() -> None:
    """In processes that are started from here on, as it is read when torch is loaded; what was set already stays."""
    os.environ.setdefault(CPP_LOG_LEVEL, "ERROR")
