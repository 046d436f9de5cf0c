from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
from processes import ChildFailed, Crew, find_program

from sf_contract.errors import UsageError

PYTHON = Path(sys.executable).name


def test_a_command_run_to_its_end_gives_its_output_and_shows_what_it_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Crew(tmp_path) as crew:
        printed = crew.run("export", [PYTHON, "-c", "import sys; print(42); print('half way', file=sys.stderr)"])
    assert printed == "42\n"
    assert "  half way\n" in capsys.readouterr().err
    assert (tmp_path / "export.log").read_text(encoding="utf-8") == "half way\n"


def test_a_failing_child_is_named_with_the_end_of_its_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Crew(tmp_path) as crew, pytest.raises(ChildFailed, match="phone-2 ended with exit code 16") as failure:
        crew.run("phone-2", [PYTHON, "-c", "import sys; print('nobody answers', file=sys.stderr); sys.exit(16)"])
    assert "nobody answers" in capsys.readouterr().err
    assert str(tmp_path / "phone-2.log") in failure.value.one_line()


def test_another_childs_failure_ends_the_waiting(tmp_path: Path) -> None:
    with Crew(tmp_path) as crew, pytest.raises(ChildFailed, match="server"):
        waiting = crew.start("phone-1", [PYTHON, "-c", "import signal; signal.pause()"])
        crew.start("server", [PYTHON, "-c", "raise SystemExit(3)"])
        crew.wait_until(lambda: not waiting.is_running)


def test_children_and_their_children_are_stopped_when_the_demo_is_interrupted(tmp_path: Path) -> None:
    fifo = tmp_path / "alive"
    os.mkfifo(fifo)
    grandchild = f"import signal; held = open({str(fifo)!r}, 'w'); signal.pause()"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grandchild!r}])"
    with pytest.raises(KeyboardInterrupt), Crew(tmp_path / "logs") as crew:
        child = crew.start("server", [PYTHON, "-c", parent])
        alive = fifo.open()  # returns once the grandchild has opened its end
        raise KeyboardInterrupt
    with alive:
        assert alive.read() == ""  # returns once the grandchild is gone
    assert child.process.returncode == -signal.SIGTERM


def test_a_command_that_is_not_installed_is_named() -> None:
    with pytest.raises(UsageError, match="sf-nonexistent is not installed"):
        find_program("sf-nonexistent")
