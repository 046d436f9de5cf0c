"""`deploy/sf-edge.service` and its settings: what they name exists, and what does not heal is not tried again."""

from __future__ import annotations

import configparser
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from sf_contract import errors
from sf_contract.errors import SplitFrozenError
from sf_contract.settings import resolve_settings
from sf_edge.main import main
from sf_edge.settings import RunSettings, check_settings

DEPLOY = Path(__file__).parents[2] / "deploy"
UNIT, SETTINGS = DEPLOY / "sf-edge.service", DEPLOY / "edge.toml"
HEALS = {errors.ServerUnreachable, errors.DiskFull, errors.NotAuthorised}
"""The network comes back, somebody frees space, the server's keeper authorises the key."""
ONLY_ELSEWHERE = {
    errors.ModelError,
    errors.SplitLayerError,
    errors.ErrorBudgetExceeded,
    errors.AddressInUse,
    errors.TrainingFailed,
}
"""Failures of the exporter and the server, which a device never has."""


@pytest.fixture(scope="module")
def service() -> dict[str, str]:
    unit = configparser.RawConfigParser(strict=True)
    unit.optionxform = str
    unit.read(UNIT, encoding="utf-8")
    return dict(unit["Service"])


def test_every_failure_of_a_device_either_heals_or_ends_the_service(service):
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, SplitFrozenError)]
    final = {kind.exit_code for kind in kinds if kind is not SplitFrozenError} - {
        kind.exit_code for kind in HEALS | ONLY_ELSEWHERE
    }
    assert set(map(int, service["RestartPreventExitStatus"].split())) == final
    assert (service["Restart"], service["SuccessExitStatus"]) == ("on-failure", "143")


def test_the_command_it_starts_is_understood_and_its_settings_are_valid(service, capsys):
    program, *arguments = shlex.split(service["ExecStart"])
    assert program.endswith("/bin/sf-edge")
    assert arguments == ["run", "--watch", "--config", "/etc/splitfrozen/edge.toml"]
    settings = resolve_settings(RunSettings, toml_path=SETTINGS, flags={"watch": True})
    check_settings(settings)
    assert settings.give_up_after_s == 0
    assert main([*arguments[:-1], "/does/not/exist"]) == 2
    assert "/does/not/exist cannot be read" in capsys.readouterr().err


def test_its_own_folder_is_the_only_place_it_writes_to(service):
    assert service["ProtectSystem"] == "strict"
    assert service["StateDirectory"] == "splitfrozen"
    assert "ReadWritePaths" not in service
    assert service["Environment"] == "HOME=/var/lib/splitfrozen"


def test_systemd_finds_nothing_to_say_about_it(tmp_path):
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/splitfrozen/bin/sf-edge", "/usr/bin/env"))
    done = subprocess.run([analyze, "verify", "--man=no", unit], capture_output=True, text=True, check=False)
    if "Failed to" in done.stderr and done.returncode != 0 and str(unit) not in done.stderr:
        pytest.skip(f"systemd-analyze cannot work here: {done.stderr.splitlines()[0]}")
    assert (done.returncode, done.stderr) == (0, "")
