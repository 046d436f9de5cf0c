"""`dist/sf-edge.pyz`: one file that runs, the same bytes from the same sources."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import edge_zipapp
from edge_zipapp import PACKAGES, build
from sf_contract import SOFTWARE
from support.tiny_bundle import write_tiny_bundle


@pytest.fixture(scope="module")
def pyz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("zipapp") / "sf-edge.pyz"
    assert edge_zipapp.main(["--out", str(file)]) == 0
    return file


def test_the_same_sources_give_the_same_bytes_whatever_their_times_and_caches(pyz, tmp_path):
    copies = [Path(shutil.copytree(package, tmp_path / package.name)) for package in PACKAGES]
    for file in (file for copy in copies for file in copy.rglob("*.py")):
        os.utime(file, (1, 1))
        file.chmod(0o600)
    assert build(copies) == pyz.read_bytes()


def test_it_holds_our_sources_and_nothing_else(pyz):
    with zipfile.ZipFile(pyz) as archive:
        names = archive.namelist()
    assert names[0] == "__main__.py"
    assert {name.partition("/")[0] for name in names[1:]} == {"sf_contract", "sf_edge"}
    assert all(name.endswith(".py") for name in names)
    assert "sf_edge/run.py" in names


def test_it_is_executable_and_says_its_version(pyz):
    assert os.access(pyz, os.X_OK)
    assert _run(pyz, "--version").strip() == f"sf-edge ({SOFTWARE})"


def test_it_verifies_a_bundle_with_the_code_inside(pyz, tmp_path):
    bundle = write_tiny_bundle(tmp_path / "bundle")
    assert "self-test" in _run(pyz, "verify", bundle)
    code = f"import sys; sys.path.insert(0, {str(pyz)!r}); import sf_edge, sf_contract; print(sf_edge.__file__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(str(pyz))


def _run(*command: object) -> str:
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
