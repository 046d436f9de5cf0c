from __future__ import annotations

from pathlib import Path

import pytest

from support.together import Site, bundle_for


@pytest.fixture(autouse=True)
def quick_roll_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is left when a process dies is known at once on one machine."""
    monkeypatch.setattr("sf_server.scale.world.ROLL_CALL_S", 0.3)


@pytest.fixture(scope="session")
def scale_bundle(tmp_path_factory: pytest.TempPathFactory, tiny_model) -> Path:
    return bundle_for(tiny_model("llama"), tmp_path_factory.mktemp("scale") / "bundle")


@pytest.fixture
def site(tmp_path: Path, tiny_model, scale_bundle: Path) -> Site:
    return Site(tmp_path, tiny_model("llama"), scale_bundle)


@pytest.fixture(scope="session")
def two_ranks(tmp_path_factory: pytest.TempPathFactory, tiny_model, scale_bundle: Path) -> Path:
    """The same, trained by two processes."""
    site = Site(tmp_path_factory.mktemp("two-ranks"), tiny_model("llama"), scale_bundle)
    run = site.run("run", ranks=2)
    return site.train(run, run)


@pytest.fixture(scope="session")
def alone(tmp_path_factory: pytest.TempPathFactory, tiny_model, scale_bundle: Path) -> Path:
    """The run that all others are compared with: one process."""
    site = Site(tmp_path_factory.mktemp("alone"), tiny_model("llama"), scale_bundle)
    return site.train(site.run("run"))
