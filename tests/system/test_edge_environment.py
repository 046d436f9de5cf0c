"""The edge extra alone, in an environment of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from support.processes import Command, bound_address, stored_rows

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
MAX_MB = 300
"""With everything pip brings; the list of packages that is really needed is shorter, see docs/operations.md."""


@pytest.fixture(scope="module")
def edge_environment(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("edge-environment")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    subprocess.run(
        [folder / "bin" / "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", f"{ROOT}[edge]"], check=True
    )
    return folder


def test_it_brings_no_training_library_and_its_size_is_known(edge_environment, capsys):
    listed = subprocess.run(
        [edge_environment / "bin" / "pip", "list", "--format", "json"], check=True, capture_output=True, text=True
    )
    packages = {entry["name"].lower() for entry in json.loads(listed.stdout)} - {"pip", "setuptools"}
    assert packages.isdisjoint({"torch", "transformers", "onnx", "peft", "datasets", "optimum", "pandas"})
    site = next((edge_environment / "lib").glob("python*/site-packages"))
    own = [entry for entry in site.iterdir() if entry.name.split("-")[0] not in {"pip", "setuptools", "pkg_resources"}]
    size_mb = sum(f.stat().st_size for entry in own for f in [entry, *entry.rglob("*")] if f.is_file()) / 1e6
    with capsys.disabled():
        print(f"\n  edge environment: {len(packages)} packages, {size_mb:.0f} MB unpacked")
    assert size_mb < MAX_MB


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
                "sf-edge", "run", "--bundle", tiny_bundle, "--server", bound_address(run), "--device", "slim",
                "--data", tmp_path / "data.jsonl", "--outbox", tmp_path / "outbox", "--json",
            ],
            tmp_path / "edge.log",
            program_folder=edge_environment / "bin",
        ) as edge:  # fmt: skip
            report = json.loads(edge.finish())
        server.finish()
    assert report["samples"] == len(rows) == len(stored_rows(run))
