"""What every command does the same way: one-line errors, numbered exit codes, no traceback for a user's mistake."""

from __future__ import annotations

import argparse
import errno
import json
import os
import select
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final, NoReturn

from sf_contract.errors import DiskFull, SplitFrozenError, UsageError

EXIT_INTERRUPTED: Final = 130
EXIT_NOBODY_READS: Final = 141
"""As of a program that SIGPIPE ended."""

_STANDARD_OUTPUT: Final = 1


class ArgumentParser(argparse.ArgumentParser):
    """argparse that reports mistakes as `UsageError` and leaves out options that were not given."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        options.setdefault("argument_default", argparse.SUPPRESS)
        options.setdefault("allow_abbrev", False)
        super().__init__(**options)

    def error(self, message: str) -> NoReturn:
        """Raise instead of exiting, so that there is one way out."""
        raise UsageError(message, cure=f"{self.prog} --help lists the options")


def run_command(program: str, body: Callable[[Sequence[str]], int], argv: Sequence[str] | None = None) -> int:
    """Run a command and turn its failures into an exit code and one line on standard error.

    Errors are JSON when the command line holds `--json`.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    try:
        exit_code = body(arguments)
        sys.stdout.flush()
        return exit_code
    except SplitFrozenError as problem:
        _report(program, problem, as_json="--json" in arguments)
        return problem.exit_code
    except OSError as problem:
        if isinstance(problem, BrokenPipeError) and _nobody_reads():
            return EXIT_NOBODY_READS
        if problem.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        full = DiskFull(f"no room left for {problem.filename or 'a file'}", cure="free some space and start again")
        _report(program, full, as_json="--json" in arguments)
        return full.exit_code
    except KeyboardInterrupt:
        print(f"{program}: stopped", file=sys.stderr)
        return EXIT_INTERRUPTED


def _nobody_reads() -> bool:
    """True when whoever read standard output has left, as `head` does; what is left to print then goes nowhere."""
    poll = select.poll()
    poll.register(_STANDARD_OUTPUT, 0)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), _STANDARD_OUTPUT)
    return True


def print_json(value: object) -> None:
    """One JSON document on standard output."""
    print(json.dumps(value, ensure_ascii=False, sort_keys=True), flush=True)


def say(text: str) -> None:
    """A line for the person watching, on standard error; standard output is for results."""
    print(text, file=sys.stderr, flush=True)


def let_idle_threads_sleep() -> None:
    """Ask OpenMP, in this process and its children, to let threads sleep while they wait; call before PyTorch is imported.

    Spinning threads are a little faster on an idle machine and several times slower on one that others use too: a waiting
    thread then keeps the processor from the one it waits for.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def usable_cores() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _report(program: str, problem: SplitFrozenError, *, as_json: bool) -> None:
    if as_json:
        print(
            json.dumps({"error": problem.what, "cure": problem.cure, "exit_code": problem.exit_code}), file=sys.stderr
        )
    else:
        print(f"{program}: {problem.one_line()}", file=sys.stderr)
