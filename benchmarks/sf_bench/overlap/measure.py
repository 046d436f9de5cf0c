"""The measurements of `sf-bench overlap`: real ingest, real trainer, devices that wait instead of computing.

The clock runs from the moment the first device begins to compute until the server has trained on the last sample; starting
processes, loading the model and publishing the adapter are not part of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from sf_bench.ingest.device import Demand, Device, Making, largest_batch
from sf_bench.ingest.fleet import Fleet
from sf_bench.ingest.samples import SampleShape, Supply
from sf_bench.ingest.server import device_name
from sf_bench.overlap.making import IN_FLIGHT_BYTES, Batchwise, share
from sf_bench.overlap.server import RunningServer, running_server
from sf_bench.overlap.settings import OverlapSettings
from sf_bench.overlap.theory import AT_ONCE, WAYS, Way, expected
from sf_bench.quality.cells import cell_path, finish_cell
from sf_contract.bundle import Bundle, open_bundle
from sf_contract.codec import WireCodec
from sf_contract.errors import UsageError
from sf_server.run_folder import RunFolder
from sf_server.settings import TrainSettings

LOOK_S: Final = 0.02
CALIBRATION: Final = "calibration"
CALIBRATION_EPOCHS: Final = 2

Say = Callable[[str], None]


class Key(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that was chosen about a measurement."""

    way: str
    ratio: float
    bundle_id: str
    devices: int
    samples: int
    tokens: int
    epochs: int
    batch_samples: int
    window_samples: int
    first_layer: int
    threads: int
    server_s_per_sample: float | None


class Measured(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One training.

    Attributes:
        wall_s: from the first device's beginning to the last sample's training.
        expected_s: what the speeds alone would take.
        device_s_per_sample: what a device waits for each sample.
        computed: samples that devices "computed" and sent.
        trained: samples trained on, each as often as it was.
        steps: of the optimizer.
        busy_s: seconds the server spent in steps.
    """

    key: Key
    wall_s: float
    expected_s: float
    device_s_per_sample: float
    computed: int
    trained: int
    steps: int
    busy_s: float


@dataclass(frozen=True, slots=True)
class Bench:
    """What all measurements have in common."""

    settings: OverlapSettings
    bundle: Bundle

    def key(self, way: str, ratio: float, *, epochs: int, server_s_per_sample: float | None) -> Key:
        """The key of one measurement."""
        settings = self.settings
        return Key(
            way=way,
            ratio=ratio,
            bundle_id=self.bundle.bundle_id,
            devices=settings.devices,
            samples=settings.samples,
            tokens=settings.tokens,
            epochs=epochs,
            batch_samples=settings.batch_samples,
            window_samples=settings.window_samples,
            first_layer=settings.lora_first_layer or self.bundle.manifest.geometry.split_layer,
            threads=settings.threads,
            server_s_per_sample=server_s_per_sample,
        )


def open_bench(settings: OverlapSettings) -> Bench:
    """Open the bundle.

    Raises:
        BundleError: it is damaged.
        UsageError: its rows do not travel as int8, a sample is longer than it allows, or a way does not exist.
    """
    bundle = open_bundle(Path(settings.bundle))
    manifest = bundle.manifest
    if manifest.wire_codec is not WireCodec.INT8 or not manifest.task.labels:
        raise UsageError(
            f"{bundle.folder} is not a bundle for classification with int8 rows", cure="export one with --labels"
        )
    if settings.tokens > manifest.geometry.max_tokens:
        raise UsageError(
            f"{bundle.folder} allows {manifest.geometry.max_tokens} tokens per sample", cure="give fewer --tokens"
        )
    unknown = [way for way in settings.ways if way not in WAYS]
    if unknown:
        raise UsageError(f"there is no way called {unknown[0]!r}", cure=f"choose from: {', '.join(WAYS)}")
    return Bench(settings=settings, bundle=bundle)


def measure_all(bench: Bench, *, say: Say) -> list[Measured]:
    """Everything that is asked for; what was measured before is taken from the work folder.

    Raises:
        MismatchError: the work folder holds measurements of other settings.
        TrainingFailed, ServerUnreachable: a process of the server ended.
    """
    settings = bench.settings
    server_s = settings.server_s_per_sample or _calibrated(bench, say)
    found = []
    for repeat in range(settings.repeats):
        for ratio in settings.ratios:
            for name in settings.ways:
                one = _finished(bench, WAYS[name], ratio, server_s=server_s, repeat=repeat)
                say(f"{name}, ratio {ratio:g}: {one.wall_s:.1f} s, expected {one.expected_s:.1f} s")
                found.append(one)
    return found


def _calibrated(bench: Bench, say: Say) -> float:
    """Seconds that the server needs for a sample, waiting for nobody, over all that is part of its loop."""
    key = bench.key(CALIBRATION, 0.0, epochs=CALIBRATION_EPOCHS, server_s_per_sample=None)
    path = cell_path(Path(bench.settings.work), CALIBRATION, 0)
    one = finish_cell(path, key, Measured, lambda folder: run_way(bench, AT_ONCE, key, folder, device_s=0.0))
    server_s = one.wall_s / one.trained
    say(f"the server takes {server_s * 1000:.1f} ms for a sample of {bench.settings.tokens} tokens")
    return server_s


def _finished(bench: Bench, way: Way, ratio: float, *, server_s: float, repeat: int) -> Measured:
    settings = bench.settings
    key = bench.key(way.name, ratio, epochs=settings.epochs, server_s_per_sample=server_s)
    path = cell_path(Path(settings.work), f"{way.name}-ratio{ratio:g}", repeat)
    device_s = ratio * server_s * settings.devices
    return finish_cell(path, key, Measured, lambda folder: run_way(bench, way, key, folder, device_s=device_s))


def run_way(bench: Bench, way: Way, key: Key, folder: RunFolder, *, device_s: float) -> Measured:
    """One whole training.

    Args:
        device_s: seconds that a device waits for each of its samples.
    """
    settings = bench.settings
    shape = SampleShape(hidden=bench.bundle.manifest.geometry.hidden, tokens=settings.tokens)
    supply = Supply(shape, bundle_id=bench.bundle.bundle_id, most=largest_batch(shape.nbytes))
    with running_server(bench.bundle, folder.path, train_settings(bench, way, epochs=key.epochs)) as server:
        makings = _makings(way, settings, epochs=key.epochs, device_s=device_s)
        devices = [
            Device(number, name=device_name(number), supply=supply, demand=making, now_s=time.monotonic())
            for number, making in enumerate(makings)
        ]
        with Fleet(server.address, devices) as fleet:
            fleet.greet()
            course = Course(fleet, server, settings, epochs=key.epochs, device_s=device_s)
            wall_s = course.run(way, [making for making in makings if isinstance(making, Batchwise)])
    unit_s = settings.samples * (key.server_s_per_sample or 0.0)
    return Measured(
        key=key,
        wall_s=wall_s,
        expected_s=unit_s * expected(way, ratio=key.ratio, epochs=key.epochs, devices=settings.devices),
        device_s_per_sample=device_s,
        computed=sum(device.acknowledged for device in devices),
        trained=server.trained(),
        steps=server.steps,
        busy_s=server.busy_s,
    )


def train_settings(bench: Bench, way: Way, *, epochs: int) -> TrainSettings:
    """The server's settings: where nothing is cached, every epoch brings samples of its own, trained on once."""
    settings = bench.settings
    window = settings.samples
    if way.one_at_a_time:
        window = share(settings.samples, settings.devices, 0)
    elif way.overlaps:
        window = settings.window_samples
    return TrainSettings(
        bundle=str(bench.bundle.folder.resolve()),
        run="",
        model=settings.model,
        expect_samples=settings.samples * (1 if way.caches else epochs),
        epochs=epochs if way.caches else 1,
        batch_samples=settings.batch_samples,
        window_samples=window,
        lora_first_layer=settings.lora_first_layer,
        dtype="fp32",
        threads=settings.threads,
        checkpoint_every_s=86_400,
        validate=False,
    )


class Course:
    """One training as it goes: who computes when, and when the server has trained on it."""

    def __init__(
        self, fleet: Fleet, server: RunningServer, settings: OverlapSettings, *, epochs: int, device_s: float
    ) -> None:
        self._fleet = fleet
        self._server = server
        self._settings = settings
        self._epochs = epochs
        self._device_s = device_s

    def run(self, way: Way, batchwise: Sequence[Batchwise]) -> float:
        """Seconds of the whole training.

        Args:
            batchwise: the devices' sources, where devices and server wait for one another.
        """
        began_s = time.monotonic()
        self._fleet.begin()
        total = self._settings.samples * self._epochs
        if not way.overlaps:
            trained = 0
            for turn in self._turns(way):
                trained += self._take_turn(turn, batchwise, trained)
        self._train_until(total)
        return time.monotonic() - began_s

    def _turns(self, way: Way) -> list[list[int]]:
        """Numbers of the devices that compute at the same time, turn by turn."""
        everybody = list(range(self._settings.devices))
        epoch = [[number] for number in everybody] if way.one_at_a_time else [everybody]
        return epoch * (1 if way.caches else self._epochs)

    def _take_turn(self, numbers: Sequence[int], batchwise: Sequence[Batchwise], trained: int) -> int:
        """These devices compute and send, the server trains on it; how many samples that were."""
        shares = {number: share(self._settings.samples, self._settings.devices, number) for number in numbers}
        self._let_pass(max(shares.values()) * self._device_s)
        for number, samples in shares.items():
            batchwise[number].let_go(samples)
        self._fleet.wake()
        self._train_until(trained + sum(shares.values()))
        return sum(shares.values())

    def _let_pass(self, seconds: float) -> None:
        self._fleet.run(time.monotonic() + seconds, every_s=seconds + 1, look=lambda: None)

    def _train_until(self, samples: int) -> None:
        while self._server.trained() < samples:
            self._let_pass(LOOK_S)


def _makings(way: Way, settings: OverlapSettings, *, epochs: int, device_s: float) -> list[Making]:
    numbers = range(settings.devices)
    if not way.overlaps:
        return [Batchwise() for _ in numbers]
    times = 1 if way.caches else epochs
    return [
        Demand(
            in_flight_bytes=IN_FLIGHT_BYTES,
            samples_per_s=1.0 / device_s,
            most=times * share(settings.samples, settings.devices, number),
        )
        for number in numbers
    ]
