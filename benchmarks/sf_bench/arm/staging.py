"""Our own packages as an emulated Python sees them, and that Python as a program like any other."""

from __future__ import annotations

import importlib.util
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

_SITE: Final = """\
import os, sys
sys.executable = os.environ["SPLITFROZEN_EMULATED_PYTHON"]
"""


def stage_code(into: Path, packages: Sequence[str] = ("sf_contract",)) -> Path:
    """A folder with these packages alone: what else lies beside them was built for this machine's processor.

    Args:
        into: a folder of this call's own.
        packages: names of pure Python packages that are installed here.
    """
    code = into / "code"
    code.mkdir(parents=True)
    for name in packages:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(name)
        shutil.copytree(Path(spec.origin).parent, code / name, ignore=shutil.ignore_patterns("__pycache__"))
    return code


def write_program(path: Path, command: Sequence[str], *, code: Path) -> Path:
    """An emulated Python that other programs can start by name, and that starts itself when it is asked for Python.

    The kernel of this machine cannot start a program of another architecture, but it can start this script.

    Args:
        path: of the script.
        command: from `emulator_command`, without arguments of Python.
        code: a folder on the emulated Python's path.
    """
    (code / "sitecustomize.py").write_text(_SITE, encoding="utf-8")
    lines = (
        "#!/bin/sh",
        "unset LD_LIBRARY_PATH LD_PRELOAD",
        f"export SPLITFROZEN_EMULATED_PYTHON={shlex.quote(str(path))}",
        f'exec {shlex.join(command)} "$@"',
    )
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    path.chmod(0o755)
    return path
