"""How commands end: exit codes, one line, no traceback."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from collections.abc import Callable, Sequence

import pytest

from sf_contract import errors
from sf_contract.command import ArgumentParser, run_command
from sf_contract.errors import DataError, MalformedMessage, SplitFrozenError, UsageError


def raising(problem: BaseException) -> Callable[[Sequence[str]], int]:
    def body(argv: Sequence[str]) -> int:
        raise problem

    return body


def kinds() -> list[type[SplitFrozenError]]:
    return [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, SplitFrozenError)]


def test_every_kind_of_failure_has_its_own_exit_code() -> None:
    codes = [kind.exit_code for kind in kinds()]
    assert len(set(codes)) == len(codes)
    assert {130, 143}.isdisjoint(codes)


def test_the_tree_at_the_top_of_the_file_lists_them_all() -> None:
    assert errors.__doc__ is not None
    for kind in kinds():
        assert kind is SplitFrozenError or f"{kind.__name__:<20} {kind.exit_code:>2}" in errors.__doc__


def test_a_failure_is_one_line_with_cause_and_cure(capsys: pytest.CaptureFixture[str]) -> None:
    problem = DataError("rows.jsonl\nis empty.", cure="give  another file.")
    assert run_command("sf-edge", raising(problem), []) == 12
    captured = capsys.readouterr()
    assert captured.err == "sf-edge: rows.jsonl is empty. Cure: give another file.\n"
    assert captured.out == ""


def test_with_json_a_failure_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("sf-edge", raising(MalformedMessage("x")), ["--json"]) == 21
    found = json.loads(capsys.readouterr().err)
    assert found == {"error": "x", "cure": "run the same SplitFrozen version on both ends", "exit_code": 21}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_has_its_exit_code_wherever_it_shows(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("sf-edge", raising(OSError(number, "full", "/x/file")), []) == 19
    assert "/x/file" in capsys.readouterr().err


def test_other_failures_of_the_system_are_not_hidden() -> None:
    with pytest.raises(OSError, match="denied"):
        run_command("sf-edge", raising(PermissionError(errno.EACCES, "denied")), [])


def test_ctrl_c_is_130(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("sf-edge", raising(KeyboardInterrupt()), []) == 130
    assert capsys.readouterr().err == "sf-edge: stopped\n"


def test_wrong_options_are_usage_errors_and_options_not_given_are_absent() -> None:
    parser = ArgumentParser(prog="sf-edge")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--watch", action="store_true")
    assert vars(parser.parse_args([])) == {}
    for argv in (["--thread", "2"], ["--threads", "two"], ["--nope"]):
        with pytest.raises(UsageError) as caught:
            parser.parse_args(argv)
        assert "--help" in caught.value.cure


def test_a_reader_that_has_seen_enough_is_no_failure():
    """As in `sf-server devices | head -1`: no traceback, also not when Python closes its output at the end."""
    script = (
        "import sys\n"
        "from sf_contract.command import run_command\n"
        "sys.exit(run_command('sf-server', lambda _: [print('x' * 80) for _ in range(100_000)] and 0, []))\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_another_broken_pipe_stays_a_bug():
    with pytest.raises(BrokenPipeError):
        run_command("sf-server", raising(BrokenPipeError(errno.EPIPE, "gone")), [])
