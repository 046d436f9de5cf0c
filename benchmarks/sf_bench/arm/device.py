"""`sf-edge run` as an EMULATED aarch64 process against this machine's own ingest, beside a native run of the same data.

Both devices send to one store over TCP on the loopback address. What must be equal is compared exactly: token ids, number
and order of samples, their roles, labels and target ids. Rows are compared with the tolerance that the bundle itself sets,
because integer kernels of different processors round differently.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from sf_bench.arm import ids_guest
from sf_bench.arm.profiles import Profile
from sf_bench.arm.staging import stage_code
from sf_bench.arm.toolkit import Toolkit, emulator_command, run_emulated
from sf_bench.ingest_only import running_ingest
from sf_contract.bundle import Bundle, open_bundle
from sf_contract.codec import decode_rows, relative_row_errors
from sf_contract.errors import MismatchError, SelfTestFailed
from sf_contract.messages import Role
from sf_server.bundles import int4_by_bundle
from sf_server.run_folder import RunFolder
from sf_server.store.store import Store
from sf_server.store.stored import StoredSample

NATIVE: Final = "native"
HOLDOUT: Final = 0.1
_EDGE: Final = "import sys; from sf_edge.main import main; sys.exit(main())"


class DeviceResult(msgspec.Struct, frozen=True):
    """One bundle on one EMULATED processor, against the native run of the same data.

    Attributes:
        profile: name of the processor.
        samples: stored from each of the two.
        tokens: all rows together.
        mean_error: of the emulated rows against the native ones, relative, mean over all rows.
        worst_sample: the same, mean over the sample where it is largest.
        limit: what the bundle's self-test allows on average.
    """

    profile: str
    samples: int
    tokens: int
    mean_error: float
    worst_sample: float
    limit: float


@dataclass(frozen=True, slots=True)
class Device:
    """A device of the comparison: how it starts Python, and how its name stands in the store."""

    name: str
    run_python: Callable[[Sequence[str]], str]


def compare_devices(
    folder: Path, data: Path, *, profiles: Sequence[Profile], toolkit: Toolkit, work: Path, say: Callable[[str], None]
) -> list[DeviceResult]:
    """Run the device natively and on every profile, and compare what the server stored.

    Args:
        folder: the bundle.
        data: the device's data file.
        profiles: processors.
        toolkit: the emulator's files.
        work: an empty folder; `run/` in it is afterwards the server's run folder.
        say: told what runs now.

    Raises:
        EmulationFailed: a device did not end well.
        MismatchError: another number of samples, other ids, roles, labels or targets.
        SelfTestFailed: rows further from the native ones than the bundle allows.
    """
    bundle = open_bundle(folder)
    native = Device(NATIVE, _run_native)
    devices = [native, *(_emulated(profile, toolkit, stage_all(work / profile.name)) for profile in profiles)]
    run = RunFolder(work / "run")
    with running_ingest(bundle, run) as address:
        for device in devices:
            say(f"sf-bench: {device.name} computes and sends {data.name}")
            device.run_python(["-c", _EDGE, *edge_arguments(bundle, data, device.name, address=address, work=work)])
    _check_ids(bundle, data, devices)
    stored = {device.name: stored_samples(run, device.name, bundle) for device in devices}
    return [
        compare_samples(stored[NATIVE], stored[profile.name], profile=profile.name, bundle=bundle)
        for profile in profiles
    ]


def stage_all(into: Path) -> Path:
    """What an emulated `sf-edge` needs of ours."""
    return stage_code(into, ("sf_contract", "sf_edge"))


def edge_arguments(bundle: Bundle, data: Path, device: str, *, address: str, work: Path) -> list[str]:
    """The device's command line, as in the quickstart."""
    return [
        *("run", "--bundle", str(bundle.folder.resolve()), "--server", address, "--data", str(data.resolve())),
        *("--device", device, "--outbox", str(work / f"outbox-{device}"), "--holdout", str(HOLDOUT), "--json"),
    ]


def stored_samples(run: RunFolder, device: str, bundle: Bundle) -> list[tuple[Role, StoredSample]]:
    """What the server holds of a device, in the order in which it was sent."""
    with Store.open_read_only(run.store_path, int4=int4_by_bundle([bundle])) as store:
        found = [
            (role, sample)
            for role in Role
            for sample in store.load([i.seq for i in store.sample_infos(role=role) if i.device == device])
        ]
    return sorted(found, key=lambda pair: pair[1].seq)


def compare_samples(
    native: Sequence[tuple[Role, StoredSample]],
    emulated: Sequence[tuple[Role, StoredSample]],
    *,
    profile: str,
    bundle: Bundle,
) -> DeviceResult:
    """Both devices' samples, pair by pair.

    Raises:
        MismatchError: they differ in what must be equal.
        SelfTestFailed: their rows are further apart than the bundle allows.
    """
    if len(native) != len(emulated):
        raise _different(profile, f"{len(emulated)} samples where the native run has {len(native)}")
    for position, (one, other) in enumerate(zip(native, emulated, strict=True)):
        if _exact_part(*one) != _exact_part(*other):
            raise _different(profile, f"another role, label, length or other target ids in sample {position}")
    errors = [
        relative_row_errors(decode_rows(other.rows), decode_rows(one.rows))
        for (_, one), (_, other) in zip(native, emulated, strict=True)
    ]
    limit = bundle.manifest.self_test.max_mean_error
    result = DeviceResult(
        profile=profile,
        samples=len(errors),
        tokens=sum(map(len, errors)),
        mean_error=float(np.concatenate(errors).mean()),
        worst_sample=max(float(error.mean()) for error in errors),
        limit=limit,
    )
    if not result.mean_error <= limit:
        raise SelfTestFailed(
            f"on EMULATED {profile} the rows are {result.mean_error:.2%} from the native ones; the bundle allows {limit:.2%}",
            cure="export it for that kind of processor, with --target, or with --quantize none",
        )
    return result


def _exact_part(role: Role, sample: StoredSample) -> tuple[object, ...]:
    targets = None if sample.targets is None else sample.targets.tolist()
    return role, sample.label, sample.rows.tokens, targets


def _different(profile: str, what: str) -> MismatchError:
    return MismatchError(f"the device on EMULATED {profile} sent {what}", cure="report this: the data were the same")


def _check_ids(bundle: Bundle, data: Path, devices: Sequence[Device]) -> None:
    arguments = [ids_guest.__file__, str(bundle.folder.resolve()), str(data.resolve())]
    first, *others = [(device.name, device.run_python(arguments)) for device in devices]
    for name, said in others:
        if said != first[1]:
            raise _different(name, "other token ids")


def _emulated(profile: Profile, toolkit: Toolkit, code: Path) -> Device:
    def run_python(arguments: Sequence[str]) -> str:
        return run_emulated(emulator_command(toolkit, profile, arguments, code=code), profile)

    return Device(profile.name, run_python)


def _run_native(arguments: Sequence[str]) -> str:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()[-1:]
        raise MismatchError(
            f"the native run ended with {done.returncode}: {said}", cure="make it work without emulation"
        )
    return done.stdout
