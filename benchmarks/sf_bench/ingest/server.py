"""The real ingest process of a run of its own, in the clear or encrypted, and keys for simulated devices."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from sf_bench.ingest.samples import SampleShape, write_synthetic_bundle
from sf_bench.ingest_only import running_ingest, usual_settings
from sf_contract.errors import ServerUnreachable
from sf_contract.key_files import PUBLIC_KEY_SUFFIX
from sf_contract.link_keys import LinkSecretKey, new_link_key, read_link_key
from sf_edge.link.security import LinkKeys
from sf_server.link.security import AUTHORIZED_FOLDER, KEY_FILE, prepare_link
from sf_server.run_folder import RunFolder
from sf_server.store.store import Store


@dataclass(frozen=True, slots=True)
class Server:
    """A running ingest.

    Attributes:
        keys: one pair for each device, in their order; empty when devices come in the clear.
    """

    run: RunFolder
    address: str
    pid: int
    bundle_id: str
    keys: tuple[LinkKeys, ...]

    def stored(self) -> int:
        """Samples in its store."""
        with Store.open_read_only(self.run.store_path) as store:
            return store.counts().train_samples


def device_name(number: int) -> str:
    """The name of a simulated device."""
    return f"device-{number:04}"


@contextmanager
def ingest_for(
    devices: int, shape: SampleShape, *, folder: Path, encrypted: bool, python_options: Sequence[str] = ()
) -> Iterator[Server]:
    """An ingest that knows so many devices; its folder is removed at the end.

    Raises:
        ServerUnreachable: it ended at once.
    """
    with tempfile.TemporaryDirectory(prefix="sf-bench-ingest-", dir=folder) as scratch:
        bundle = write_synthetic_bundle(Path(scratch) / "bundle", shape)
        run = RunFolder(Path(scratch).resolve() / "run")
        settings = usual_settings(bundle, run)
        if encrypted:
            settings = msgspec.structs.replace(settings, authorized=str(run.path / AUTHORIZED_FOLDER))
        prepare_link(settings.link_choice())
        keys = _authorize(devices, run.path) if encrypted else ()
        with running_ingest(bundle, run, settings=settings, python_options=python_options) as address:
            record = run.ingest_record()
            if record is None:
                raise ServerUnreachable("the ingest process went away", cure="look at its disk")
            yield Server(run=run, address=address, pid=record.pid, bundle_id=bundle.bundle_id, keys=keys)


def _authorize(devices: int, run: Path) -> tuple[LinkKeys, ...]:
    server = read_link_key(run / KEY_FILE).public
    secrets: list[LinkSecretKey] = [new_link_key() for _ in range(devices)]
    for number, secret in enumerate(secrets):
        (run / AUTHORIZED_FOLDER / f"{device_name(number)}{PUBLIC_KEY_SUFFIX}").write_text(secret.public.line())
    return tuple(LinkKeys(secret=secret, server=server) for secret in secrets)
