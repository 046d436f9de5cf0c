"""`sf-edge slim`: removes what packages themselves list and no device loads, from a device's own environment only."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

import pytest

from sf_contract.errors import UsageError
from sf_edge.main import main
from sf_edge.slim import find_unused, remove

FILES = {
    "onnxruntime": ("capi/libonnxruntime.so.1", "capi/_state.so", "transformers/a/b.py", "tools/c.py", "__init__.py"),
    "numpy": ("_core/_umath.so", "_core/tests/test_x.py", "lib/x.py", "__init__.pyi", "f2py/y.py", "LICENSE.txt"),
}
KEPT = {
    "onnxruntime/capi/_state.so",
    "onnxruntime/__init__.py",
    "numpy/_core/_umath.so",
    "numpy/lib/x.py",
    "numpy/LICENSE.txt",
}


@pytest.fixture
def site(tmp_path: Path) -> Path:
    folder = tmp_path / "site"
    for name, files in FILES.items():
        install(folder, name, [f"{name}/{file}" for file in files])
    return folder


def install(site: Path, name: str, files: list[str]) -> None:
    for file in files:
        (site / file).parent.mkdir(parents=True, exist_ok=True)
        (site / file).write_bytes(b"x" * 10)
    info = site / f"{name}-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
    (info / "RECORD").write_text("".join(f"{file},,\n" for file in files))


def installed(site: Path) -> list[metadata.Distribution]:
    return list(metadata.Distribution.discover(path=[str(site)]))


def test_what_no_device_loads_goes_and_the_rest_stays(site):
    found = find_unused(installed(site))
    assert {each.package: each.nbytes for each in found} == {"onnxruntime": 30, "numpy": 30}
    remove(found)
    left = {file.relative_to(site).as_posix() for file in site.rglob("*") if file.is_file()}
    assert {name for name in left if "dist-info" not in name} == KEPT
    assert not (site / "numpy" / "f2py").exists()
    assert find_unused(installed(site)) == []


def test_files_the_package_does_not_list_and_files_outside_are_left_alone(site, tmp_path):
    mine = site / "numpy" / "tests" / "mine.py"
    mine.parent.mkdir()
    mine.touch()
    outside = tmp_path / "bin" / "numpy.h"
    outside.parent.mkdir()
    outside.touch()
    record = site / "numpy-1.dist-info" / "RECORD"
    record.write_text(record.read_text() + "../bin/numpy.h,,\n")
    remove(find_unused(installed(site)))
    assert mine.exists()
    assert outside.exists()


def test_an_environment_that_others_use_too_is_refused(site):
    install(site, "torch", ["torch/__init__.py"])
    with pytest.raises(UsageError, match="torch"):
        find_unused(installed(site))


def test_the_command_shows_and_removes_only_when_told_to(site, monkeypatch, capsys):
    here = installed(site)
    monkeypatch.setattr(metadata, "distributions", lambda: here)
    monkeypatch.setattr(sys, "prefix", "/some/environment")
    assert main(["slim"]) == 0
    assert "nothing was removed" in capsys.readouterr().out
    assert len(find_unused(installed(site))) == 2
    assert main(["slim", "--yes", "--json"]) == 0
    assert '"removed": true' in capsys.readouterr().out
    assert find_unused(installed(site)) == []


def test_the_systems_own_python_is_never_changed(site, monkeypatch, capsys):
    here = installed(site)
    monkeypatch.setattr(metadata, "distributions", lambda: here)
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    assert main(["slim", "--yes"]) == 2
    assert "system's own Python" in capsys.readouterr().err
    assert len(find_unused(installed(site))) == 2
