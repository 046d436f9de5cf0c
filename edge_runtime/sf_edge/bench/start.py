"""A fresh process that does what `sf-edge run` does before its first row, and says how long and how much memory it took."""

from __future__ import annotations

import importlib
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from sf_contract.bundle import Bundle, open_bundle
from sf_contract.command import run_command
from sf_contract.errors import BundleError
from sf_edge.bench.report import Shape, Start
from sf_edge.bench.turns import random_tokens


class StartJob(msgspec.Struct, frozen=True):
    """What the process is asked: the bundle, every shape, and the monotonic clock when it was started."""

    bundle: str
    shapes: tuple[Shape, ...]
    began_s: float


def measure_start(bundle: Bundle, shapes: Sequence[Shape], *, python: str = sys.executable) -> Start:
    """Run such a process to its end.

    Raises:
        BundleError: it failed; its own last line says why.
    """
    job = StartJob(bundle=str(bundle.folder.resolve()), shapes=tuple(shapes), began_s=time.monotonic())
    words = [python, "-P", "-c", "from sf_edge.bench.start import main; raise SystemExit(main())"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [*words, msgspec.json.encode(job).decode()], env=environment, capture_output=True, check=False
    )
    if done.returncode != 0:
        raise _failed(done)
    return msgspec.json.decode(done.stdout, type=Start)


def main(argv: Sequence[str] | None = None) -> int:
    """The process: prints a `Start` as JSON."""
    return run_command("sf-edge bench", _run, argv)


def _run(arguments: Sequence[str]) -> int:
    job = msgspec.json.decode(arguments[0], type=StartJob)
    sys.stdout.buffer.write(msgspec.json.encode(_start(job)))
    return 0


def _start(job: StartJob) -> Start:
    importlib.import_module("sf_edge.run")  # all that a device process holds
    from sf_contract.front_end import open_front_end, run_self_test  # noqa: PLC0415
    from sf_contract.tokenizer import open_tokenizer  # noqa: PLC0415
    from sf_edge.memory import give_back_memory  # noqa: PLC0415

    times_s = [job.began_s, time.monotonic()]
    bundle = open_bundle(Path(job.bundle))
    times_s.append(time.monotonic())
    tokenizer = open_tokenizer(bundle)
    times_s.append(time.monotonic())
    rss_before_graph_bytes = resident_bytes("VmRSS")
    front_end = open_front_end(bundle)
    times_s.append(time.monotonic())
    run_self_test(bundle, front_end)
    give_back_memory()
    times_s.append(time.monotonic())
    inputs = random_tokens(job.shapes, vocabulary=bundle.manifest.geometry.vocabulary)
    front_end.run(inputs[min(job.shapes)])
    times_s.append(time.monotonic())
    rss_idle_bytes = resident_bytes("VmRSS")
    for token_ids in inputs.values():
        front_end.run(token_ids)
    del tokenizer
    imports_s, check_s, tokenizer_s, load_s, self_test_s, first_row_s = (
        after - before for before, after in itertools.pairwise(times_s)
    )
    return Start(
        imports_s=imports_s,
        check_s=check_s,
        tokenizer_s=tokenizer_s,
        load_s=load_s,
        self_test_s=self_test_s,
        first_row_s=first_row_s,
        total_s=times_s[-1] - times_s[0],
        weights_bytes=bundle.graph_path.stat().st_size,
        rss_before_graph_bytes=rss_before_graph_bytes,
        rss_idle_bytes=rss_idle_bytes,
        rss_peak_bytes=resident_bytes("VmHWM"),
    )


def resident_bytes(field: str, status: Path = Path("/proc/self/status")) -> int | None:
    """`VmRSS` (now) or `VmHWM` (the most so far) of this process; None where Linux does not say.

    Not `ru_maxrss`: that one survives `exec`, so a child would report its parent's memory.
    """
    try:
        lines = status.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    words = next((line.split() for line in lines if line.startswith(f"{field}:")), [])
    return int(words[1]) * 1024 if len(words) == 3 and words[1].isdecimal() else None


def _failed(done: subprocess.CompletedProcess[bytes]) -> BundleError:
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    if done.returncode < 0:
        return BundleError(
            f"the process that measures memory was ended by {signal.Signals(-done.returncode).name}",
            cure="free some memory, or give smaller --shapes",
        )
    return BundleError(
        f"a fresh process cannot compute this bundle: {lines[-1] if lines else f'exit code {done.returncode}'}",
        cure="run sf-edge verify on the bundle",
    )
