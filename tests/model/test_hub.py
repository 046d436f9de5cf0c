"""Hub models: pinned to a commit, offline from the cache, and each failure with its own cure."""

from __future__ import annotations

import errno
import shutil

import httpx2
import pytest
from huggingface_hub import constants, errors

from sf_contract.errors import ModelError
from sf_model import hub
from sf_model.checkpoint import open_checkpoint
from sf_model.progress import silent

COMMIT = "0123456789abcdef0123456789abcdef01234567"
RESPONSE = httpx2.Response(404, request=httpx2.Request("GET", "https://hub.invalid/some/model"))


@pytest.fixture
def cached(tiny_model, tmp_path, monkeypatch):
    """The hub's cache with one model; the hub cannot be reached."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    place = tmp_path / "models--some--model"
    shutil.copytree(tiny_model("llama"), place / "snapshots" / COMMIT)
    (place / "refs").mkdir()
    for name in ("main", "v1"):
        (place / "refs" / name).write_text(COMMIT)
    return place


@pytest.mark.parametrize("revision", [None, "main", "v1", COMMIT])
def test_whatever_was_asked_for_the_identity_names_the_commit(cached, revision):
    identity = open_checkpoint("some/model", revision=revision).identity
    assert (identity.name, identity.revision) == ("some/model", COMMIT)


def test_a_revision_that_is_not_in_the_cache_is_named(cached):
    with pytest.raises(ModelError, match="not in the hub's cache at revision 'v2'"):
        open_checkpoint("some/model", revision="v2")


@pytest.mark.parametrize(
    ("problem", "what", "cure"),
    [
        (errors.GatedRepoError("403", response=RESPONSE), "is gated", "ask for access"),
        (errors.RepositoryNotFoundError("404", response=RESPONSE), "the hub has none of this name", "spelling"),
        (errors.RevisionNotFoundError("404", response=RESPONSE), "no revision 'v9'", "--revision"),
        (errors.LocalEntryNotFoundError("offline"), "cannot be reached", "network"),
        (errors.OfflineModeIsEnabled("offline"), "offline", "network"),
        (errors.HFValidationError("bad"), "no hub id either", "hub id such as"),
        (errors.HfHubHTTPError("502 Bad Gateway", response=RESPONSE), "502 Bad Gateway", "wait a little"),
        (httpx2.ConnectError("no route"), "no route", "network"),
        (OSError("something"), "something", "local folder"),
    ],
)
def test_each_failure_has_its_cure(monkeypatch, problem, what, cure):
    def fail(*_: object, **__: object) -> str:
        raise problem

    monkeypatch.setattr(hub, "snapshot_download", fail)
    with pytest.raises(ModelError) as caught:
        hub.download("some/model", "v9", say=silent)
    assert "some/model" in caught.value.what
    assert what in caught.value.what
    assert cure in caught.value.cure


def test_a_full_disk_stays_a_full_disk(monkeypatch):
    def fail(*_: object, **__: object) -> str:
        raise OSError(errno.ENOSPC, "no room", "blob")

    monkeypatch.setattr(hub, "snapshot_download", fail)
    with pytest.raises(OSError, match="no room"):
        hub.download("some/model", None, say=silent)


def test_what_is_neither_path_nor_hub_id_is_refused():
    with pytest.raises(ModelError, match="no hub id either"):
        hub.download("some/where/that/is/no/model", None, say=silent)


def test_the_download_is_told_in_lines_and_draws_nothing(monkeypatch, capsys, tmp_path):
    said: list[str] = []

    def fetch(*_: object, tqdm_class, **__: object) -> str:
        with tqdm_class(total=50_000_000, unit="B", desc="Downloading", name="x") as bar:
            bar.update(20_000_000)
        return str(tmp_path / COMMIT)

    monkeypatch.setattr(hub, "EVERY_S", 0)
    monkeypatch.setattr(hub, "snapshot_download", fetch)
    hub.download("some/model", None, say=said.append)
    assert "fetching: 20 of 50 MB" in said
    assert capsys.readouterr() == ("", "")
