"""The device's packages alone, in an environment of their own: installed from `requirements-edge.txt`, slimmed, and used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.processes import Command, bound_address, stored_rows

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
MOST_PACKAGES = 8
MOST_MB = 130
"""Unpacked, after `sf-edge slim`, this project's own package included."""
MOST_MB_AS_INSTALLED = 190
"""The same before slimming: what the wheels hold, and the bytecode that pip makes of it."""
INSTALLER = ("pip", "setuptools", "pkg_resources", "_distutils_hack", "distutils-precedence")


@dataclass(frozen=True)
class EdgeEnvironment:
    """A slimmed environment: its programs, its packages, and its size before and after."""

    programs: Path
    packages: frozenset[str]
    mb_as_installed: float
    mb: float


@pytest.fixture(scope="module")
def edge_environment(tmp_path_factory) -> EdgeEnvironment:
    folder = tmp_path_factory.mktemp("edge-environment")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pip = [folder / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    locked = ["--require-hashes", "--only-binary=:all:", "-r", ROOT / "requirements-edge.txt"]
    subprocess.run([*pip, *locked], check=True)
    subprocess.run([*pip, ROOT], check=True)
    mb_as_installed = _megabytes(folder)
    subprocess.run([folder / "bin" / "sf-edge", "slim", "--yes"], check=True, env=_without_bytecode())
    return EdgeEnvironment(folder / "bin", _packages(folder), mb_as_installed=mb_as_installed, mb=_megabytes(folder))


def test_it_has_few_packages_and_is_small(edge_environment, capsys):
    with capsys.disabled():
        print(
            f"\n  edge environment: {len(edge_environment.packages)} packages, {edge_environment.mb_as_installed:.1f} MB "
            f"as installed, {edge_environment.mb:.1f} MB slimmed"
        )
    assert len(edge_environment.packages) <= MOST_PACKAGES
    assert edge_environment.mb_as_installed <= MOST_MB_AS_INSTALLED
    assert edge_environment.mb <= MOST_MB


def test_what_its_packages_say_they_need_besides_is_not_there_and_not_missed(edge_environment):
    unused = ("flatbuffers", "google.protobuf", "packaging", "sympy", "coloredlogs", "huggingface_hub", "pycparser")
    code = (
        "import importlib.util, sf_contract.front_end, sf_contract.tokenizer, sf_contract.signing, sf_edge.link.dealer\n"
        f"print([name for name in {unused} if importlib.util.find_spec(name.partition('.')[0])])"
    )
    done = subprocess.run(
        [edge_environment.programs / "python", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_it_runs_a_device_against_a_server(edge_environment, tmp_path, tiny_bundle, tiny_model):
    rows = [{"text": f"light {word}", "label": word} for word in ("on", "off") * 20]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = tmp_path / "run"
    with Command(
        [
            "sf-server", "train", "--run", run, "--bundle", tiny_bundle, "--model", tiny_model("llama"),
            "--bind", "tcp://127.0.0.1:*", "--expect-devices", 1, "--epochs", 1, "--threads", 1,
        ],
        tmp_path / "server.log",
    ) as server:  # fmt: skip
        server.wait_until((run / "ingest.json").exists, "an address")
        with Command(
            [
                "sf-edge", "run", "--no-governor", "--bundle", tiny_bundle, "--server", bound_address(run), "--device", "slim",
                "--data", tmp_path / "data.jsonl", "--outbox", tmp_path / "outbox", "--json",
            ],
            tmp_path / "edge.log",
            program_folder=edge_environment.programs,
        ) as edge:  # fmt: skip
            report = json.loads(edge.finish())
        server.finish()
    assert report["samples"] == len(rows) == len(stored_rows(run))


def _packages(folder: Path) -> frozenset[str]:
    listed = subprocess.run(
        [folder / "bin" / "pip", "list", "--format", "json", "--disable-pip-version-check"],
        check=True,
        capture_output=True,
        text=True,
    )
    return frozenset(entry["name"].lower() for entry in json.loads(listed.stdout)) - {"pip", "setuptools"}


def _megabytes(folder: Path) -> float:
    site = next((folder / "lib").glob("python*/site-packages"))
    own = [entry for entry in site.iterdir() if entry.name.split("-")[0].removesuffix(".pth") not in INSTALLER]
    return sum(file.stat().st_size for entry in own for file in [entry, *entry.rglob("*")] if file.is_file()) / 1e6


def _without_bytecode() -> dict[str, str]:
    return {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
