"""`sf-server serve` and `sf-edge predict` as real processes: several devices at once, encrypted, nothing written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from sf_contract.link_keys import make_link_key
from sf_contract.records import Row
from sf_server.results.predict_command import Predictor
from sf_server.results.text_front import FrontKind
from support.processes import Command

pytestmark = pytest.mark.slow

DEVICES = ("pi-1", "pi-2", "pi-3", "phone")
RUNTIME_ROUNDING = 1e-4


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keys of the server and of the devices; all devices but `stranger` are authorized."""
    folder = tmp_path_factory.mktemp("keys")
    (folder / "authorized").mkdir(mode=0o700)
    for name in ("server", "stranger", *DEVICES):
        make_link_key(folder / f"{name}.key")
    for name in DEVICES:
        (folder / "authorized" / f"{name}.pub").write_bytes((folder / f"{name}.key.pub").read_bytes())
    return folder


@pytest.fixture(scope="module")
def address(tmp_path_factory, classifying_run, keys) -> Iterator[str]:
    """Where the server answers; at the end it leaves by itself when told to, and has written nothing."""
    run = classifying_run.folder.path
    before = _contents(run)
    log = tmp_path_factory.mktemp("serve") / "serve.log"
    with Command(
        ["sf-server", "serve", "--run", run, "--bind", "tcp://127.0.0.1:*", "--key", keys / "server.key",
         "--authorized", keys / "authorized", "--threads", 1, "--window-ms", 20, "--json"],
        log,
    ) as server:  # fmt: skip
        assert server.process.stdout is not None
        line = server.process.stdout.readline()
        assert line, server.tail()
        yield json.loads(line)["address"]
        server.process.terminate()
        server.finish(timeout_s=60)
    assert _contents(run) == before
    assert "Traceback" not in log.read_text()


def _contents(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def _ask(address: str, keys: Path, name: str, bundle: Path, log: Path, *more: object) -> Command:
    return Command(
        ["sf-edge", "predict", "--bundle", bundle, "--server", address, "--device", name, "--key", keys / f"{name}.key",
         "--server-key", keys / "server.key.pub", "--json", "--timeout-s", 60, *more],
        log,
    )  # fmt: skip


def test_four_devices_of_two_cuts_at_once_get_the_answers_of_the_server_alone(
    address, keys, classifying_run, labelled_file, tmp_path
):
    texts = [json.loads(line)["text"] for line in labelled_file.read_text().splitlines()]
    bundles = [classifying_run.bundles[n % 2] for n in range(len(DEVICES))]
    with ExitStack() as running:
        asking = [
            running.enter_context(
                _ask(address, keys, name, bundle.folder, tmp_path / f"{name}.log", "--data", labelled_file)
            )
            for name, bundle in zip(DEVICES, bundles, strict=True)
        ]
        answers = [[json.loads(line) for line in command.finish().splitlines()] for command in asking]
    for found, bundle in zip(answers, bundles, strict=True):
        alone = Predictor(classifying_run, FrontKind.BUNDLE, bundle)
        wanted = [alone.answer(Row(n, {"text": text})) for n, text in enumerate(texts)]
        assert [answer["text"] for answer in found] == texts
        for answer, expected in zip(found, wanted, strict=True):
            assert answer["label"] == expected["label"]
            assert answer["probability"] == pytest.approx(expected["probability"], abs=RUNTIME_ROUNDING)
            assert [c["label"] for c in answer["classes"]] == [c["label"] for c in expected["classes"]]
    assert len({answer["label"] for answer in answers[0]}) > 1, "the texts hardly matter"


def test_who_may_not_ask_is_told_why(address, keys, classifying_run, tmp_path):
    bundle = classifying_run.bundles[0].folder
    with _ask(address, keys, "stranger", bundle, tmp_path / "a.log", "the light") as stranger:
        code, said = stranger.fail()
    assert (code, "does not know this device's key" in said) == (26, True)


def test_a_server_that_is_not_there_is_named_within_the_time(keys, classifying_run, tmp_path):
    bundle = classifying_run.bundles[0].folder
    with _ask("tcp://127.0.0.1:9", keys, "pi-1", bundle, tmp_path / "b.log", "the light") as nobody:
        code, said = nobody.fail()
    assert (code, "nobody accepts connections there" in said) == (16, True)
