"""Worker for bundles: SplitFrozen's own front end in ONNX Runtime, exactly as a device runs it."""

from __future__ import annotations

from pathlib import Path

from sf_bench.rivals.protocol import FloatRows, Job, Times, timed
from sf_contract.bundle import open_bundle
from sf_contract.codec import decode_rows
from sf_contract.front_end import RUNTIME_VERSION, FrontEnd, open_front_end


class BundleRuntime:
    """A bundle's front end; its time includes the wire codec."""

    def __init__(self, front_end: FrontEnd) -> None:
        self._front_end = front_end
        self.version = f"ONNX Runtime {RUNTIME_VERSION}"

    def run(self, token_ids: tuple[int, ...]) -> Times:
        """Times of one run."""
        return timed(lambda: self._front_end.run([token_ids]))

    def rows(self, token_ids: tuple[int, ...]) -> FloatRows:
        """Decoded wire rows."""
        return decode_rows(self._front_end.run([token_ids])[0])


def open_runtime(job: Job) -> BundleRuntime:
    """Options: `bundle`."""
    return BundleRuntime(open_front_end(open_bundle(Path(job.options["bundle"])), threads=job.threads))
