"""What each program may load, seen in a fresh interpreter."""

from __future__ import annotations

import ast
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import sf_contract
import sf_edge

HEAVY = ("torch", "transformers", "peft", "onnx", "datasets", "pandas", "rich", "pydantic", "optimum", "safetensors")
WITHOUT_TORCH = (
    "sf_server.ingest.process",
    "sf_server.supervision.supervisor",
    "sf_server.seeing.process",
    "sf_server.store.store",
    "sf_server.main",
)


def _modules_of(package) -> list[str]:
    return [module.name for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]


def _loaded_after_importing(modules: list[str]) -> set[str]:
    script = f"import sys, {', '.join(modules)}; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_device_process_never_loads_a_training_library():
    loaded = _loaded_after_importing(_modules_of(sf_edge))
    assert "onnxruntime" in loaded
    assert "zmq" in loaded
    assert loaded.isdisjoint({*HEAVY, "huggingface_hub", "sf_model", "sf_export", "sf_server"})


def test_a_device_loads_openssl_never_and_pynacl_only_for_keys_and_signatures():
    """Each is some megabytes that a device would keep for weeks."""
    loaded = _loaded_after_importing(["sf_edge.run", "sf_edge.loop"])
    assert loaded.isdisjoint({"_hashlib", "_ssl", "nacl"})


def test_the_receiving_side_of_the_server_needs_no_torch():
    assert _loaded_after_importing(list(WITHOUT_TORCH)).isdisjoint({*HEAVY, "onnxruntime"})


def test_the_contract_alone_needs_numpy_and_msgspec_only():
    names = ["errors", "messages", "frames", "codec", "manifest", "bundle", "records", "samples", "settings", "command"]
    loaded = _loaded_after_importing([f"sf_contract.{name}" for name in names])
    assert {"numpy", "msgspec"} <= loaded
    assert loaded.isdisjoint({*HEAVY, "zmq", "sqlite3", "onnxruntime", "tokenizers", "nacl"})


@pytest.mark.parametrize("program", ["sf-export", "sf-edge", "sf-server", "sf-bench"])
def test_help_and_version_work_without_loading_anything_heavy(program):
    package = program.replace("-", "_")
    script = (
        f"import sys; from {package}.main import main\n"
        "try:\n    main(['--version'])\nexcept SystemExit:\n    pass\n"
        f"heavy = {{{', '.join(map(repr, (*HEAVY, 'onnxruntime', 'zmq')))}}} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"splitfrozen {sf_contract.__version__}" in done.stdout


def test_onnx_runtimes_telemetry_is_off_before_it_is_imported(tmp_path):
    """A plain import and session write a device id and a database under the home folder; ours must not."""
    script = (
        "import os, threading; os.environ.pop('ORT_DISABLE_TELEMETRY', None)\n"
        "import sf_contract.front_end\n"
        "assert os.environ['ORT_DISABLE_TELEMETRY'] == '1'\n"
    )
    environment = {**os.environ, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)
    assert list(tmp_path.rglob("*")) == []


def test_every_heavy_library_has_one_named_door():
    doors = {
        "onnxruntime": {"sf_contract/front_end.py", "sf_export/quantize.py"},
        "zmq": {"sf_edge/link/dealer.py", "sf_server/link/router.py", "sf_bench/ingest/fleet.py"},
        "sqlite3": {
            "sf_edge/outbox/file.py",
            "sf_server/store/file.py",
            "sf_server/training/lifted.py",
            "sf_bench/ingest/disk.py",
        },
        "prometheus_client": {"sf_server/seeing/prometheus.py"},
        "rich": {"sf_server/seeing/table.py", "sf_server/seeing/status_command.py"},
        "tensorboardX": {"sf_server/seeing/tensorboard.py"},
        "peft": {
            "sf_server/training/lora.py",
            "sf_bench/quality/central.py",
            "sf_bench/training/hugging_face.py",
        },
        "optimum": {"sf_model/config_view.py"},
        "matplotlib": {"sf_bench/overlap/plot.py"},
        "tokenizers": {"sf_contract/tokenizer.py"},
        "uvicorn": {"sf_server/seeing/dashboard/serving.py"},
        "nacl": {"sf_contract/signing.py", "sf_contract/link_keys.py"},
    }
    root = Path(__file__).parents[2]
    sources = list(root.glob("*/sf_*/**/*.py"))
    assert len(sources) > 200
    for library, allowed in doors.items():
        found = {
            file.relative_to(root).as_posix().partition("/")[2]
            for file in sources
            if library in _top_level_imports(file)
        }
        assert found <= allowed, f"{library} is imported in {sorted(found - allowed)}"


def _top_level_imports(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names
