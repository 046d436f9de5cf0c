"""A run folder as if devices had sent and a trainer had trained, made in milliseconds: for whatever shows runs."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np

from sf_contract.activations import EncodedSample
from sf_contract.bundle import MANIFEST_FILE
from sf_contract.codec import WireCodec, encode_rows
from sf_contract.limits import MIB
from sf_contract.manifest import (
    BaseModel,
    BundleFile,
    Geometry,
    Manifest,
    MeasuredError,
    Quantization,
    SelfTest,
    Task,
    TaskSpec,
    Template,
    encode_manifest,
)
from sf_contract.messages import Role
from sf_server.run_folder import IngestRecord, RunFolder
from sf_server.settings import TrainSettings
from sf_server.store.store import Store

HIDDEN: Final = 64
"""Of the samples: the store never looks whether that agrees with the bundle, and small ones are quick."""

WIDTH: Final = 576
"""What the bundles say."""

TOKENS: Final = 12
EPOCHS: Final = 3
SAMPLES_PER_STEP: Final = 16


class SeenRun:
    """A run folder that tests let happen.

    Args:
        folder: where bundle and run are made.
        cuts: one bundle for each.
        now_s: what the clock showed when it began.
    """

    def __init__(
        self,
        folder: Path,
        *,
        now_s: float,
        cuts: tuple[int, ...] = (4,),
        max_store_bytes: int = 64 * MIB,
        **settings: int | str,
    ) -> None:
        self.now_s = now_s
        self.step = 0
        self.trained = 0
        self.bundle_ids = {cut: _write_bundle(folder / f"cut{cut}", cut) for cut in cuts}
        expected = settings or {"expect_devices": 8}
        self.folder = RunFolder(folder / "run")
        self.settings = TrainSettings(
            bundle=tuple(str(folder / f"cut{cut}") for cut in cuts),
            run=str(self.folder.path),
            epochs=EPOCHS,
            max_store_bytes=max_store_bytes,
            **expected,
        )
        self.folder.create(self.settings, bundle_ids=tuple(self.bundle_ids.values()))
        self.folder.announce_ingest(IngestRecord(address="tcp://127.0.0.1:5555", pid=1))
        self.store = Store.open(self.folder.store_path, max_bytes=max_store_bytes)

    @property
    def path(self) -> Path:
        """The run folder."""
        return self.folder.path

    @contextmanager
    def worked_on(self) -> Iterator[None]:
        """As long as somebody trains."""
        with self.folder.lock():
            yield

    def hello(self, name: str, *, cut: int = 4, now_s: float | None = None) -> None:
        """A device connects."""
        self.store.note_hello(
            device=name,
            outbox=_outbox(name),
            bundle_id=self.bundle_ids[cut],
            self_test_error=0.02,
            waiting_samples=1,
            now_s=self.now_s if now_s is None else now_s,
        )

    def samples(self, name: str, samples: int, *, cut: int = 4, start: int = 0, role: Role = Role.TRAIN) -> None:
        """A device's samples, stored."""
        made = [_sample(ordinal, role) for ordinal in range(start, start + samples)]
        self.store.add(device=name, outbox=_outbox(name), bundle_id=self.bundle_ids[cut], samples=made)

    def heard(
        self,
        name: str,
        *,
        now_s: float | None = None,
        bytes_in: int = 0,
        activity: str | None = None,
        malformed: int = 0,
        rejected: int = 0,
    ) -> None:
        """A device was heard, and what it said."""
        outbox = _outbox(name)
        self.store.note_traffic(
            outbox=outbox,
            bytes_in=bytes_in,
            bytes_out=bytes_in // 300,
            malformed=malformed,
            now_s=self.now_s if now_s is None else now_s,
            activity=activity,
        )
        self.store.note_rejected(outbox=outbox, samples=rejected)

    def finished(self, name: str, *, skipped: int = 0, now_s: float | None = None) -> None:
        """A device has nothing left to send."""
        self.store.note_finished(
            outbox=_outbox(name), skipped_rows=skipped, now_s=self.now_s if now_s is None else now_s
        )

    def steps(self, steps: int, *, epoch: int, until_s: float | None = None, tokens: int = 600) -> None:
        """Steps of training, one every second, the last one at `until_s`; the loss falls in a plausible way."""
        end_s = self.now_s if until_s is None else until_s
        lines = []
        for index in range(steps):
            self.step += 1
            self.trained += SAMPLES_PER_STEP
            lines.append(
                {
                    "kind": "step",
                    "step": self.step,
                    "epoch": epoch,
                    "loss": _loss(self.step),
                    "gradient_norm": 1.0,
                    "rate_factor": 0.8,
                    "samples": SAMPLES_PER_STEP,
                    "tokens": tokens,
                    "seconds": 0.9,
                    "skipped": False,
                    "samples_trained": self.trained,
                    "time_s": end_s - (steps - 1 - index),
                }
            )
        self._write(lines)

    def skipped_step(self, *, epoch: int) -> None:
        """A step without a finite gradient."""
        self.step += 1
        line = {
            "kind": "step",
            "step": self.step,
            "epoch": epoch,
            "loss": math.nan,
            "skipped": True,
            "rate_factor": 0.8,
        }
        self._write([{**line, "samples_trained": self.trained, "time_s": self.now_s}])

    def validation(self, *, epoch: int, accuracy: float, loss: float, floor: float = 0.5) -> None:
        """A validation at the end of an epoch."""
        scores = {"accuracy": accuracy, "loss": loss, "floor": floor, "samples": 80}
        self._write([{"kind": "validation", "epoch": epoch, "step": self.step, "time_s": self.now_s, **scores}])

    def done(self) -> None:
        """The adapter is published."""
        self.folder.adapter_path.mkdir()

    def close(self) -> None:
        """Close the store."""
        self.store.close()

    def _write(self, lines: list[dict[str, object]]) -> None:
        with self.folder.metrics_path.open("a", encoding="utf-8") as stream:
            stream.writelines(json.dumps(line) + "\n" for line in lines)


def _outbox(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:32]


def _sample(ordinal: int, role: Role) -> EncodedSample:
    rows = np.full((TOKENS, HIDDEN), 0.5, dtype=np.float32)
    return EncodedSample(
        ordinal=ordinal, role=role, rows=encode_rows(rows, WireCodec.INT8, None), label=1, targets=None
    )


def _loss(step: int) -> float:
    noise = math.sin(step * 12.9898) * 43758.5453
    return 0.28 + 0.75 * math.exp(-step / 60) + 0.12 * (noise - math.floor(noise) - 0.5)


def _write_bundle(folder: Path, cut: int) -> str:
    """A folder with a manifest and nothing else; its bundle id."""
    manifest = _manifest(cut)
    folder.mkdir(parents=True)
    (folder / MANIFEST_FILE).write_bytes(encode_manifest(manifest))
    return manifest.bundle_id


def _manifest(cut: int) -> Manifest:
    return Manifest(
        format_version=1,
        base_model=BaseModel(
            name="SmolLM2-135M-Instruct",
            revision=None,
            model_type="llama",
            config_sha256="0" * 64,
            weights_sha256="1" * 64,
        ),
        geometry=Geometry(split_layer=cut, layers=30, hidden=WIDTH, vocabulary=49_152, max_tokens=256),
        task=TaskSpec(task=Task.TEXT_CLASSIFICATION, template=Template(), labels=("negative", "positive")),
        wire_codec=WireCodec.INT8,
        quantization=Quantization(
            requested="none", choices=(), error=MeasuredError(tokens=1, text="none", mean=0.0, p99=0.0, worst=0.0)
        ),
        graph_file="front.onnx",
        tokenizer_file="tokenizer.json",
        self_test=SelfTest(token_ids=((1,),), rows_file="rows.bin", max_mean_error=0.05),
        files=tuple(
            BundleFile(name=name, nbytes=4 * WIDTH, sha256="0" * 64)
            for name in ("front.onnx", "rows.bin", "tokenizer.json")
        ),
        tools={},
    )
