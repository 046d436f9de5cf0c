"""The program inside the emulated aarch64 process: each bundle's self-test, then the runs whose instructions are counted.

It is started by path, sees `sf_contract` and its libraries only, and prints one JSON document.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np
import numpy.typing as npt

from sf_contract.bundle import Bundle, open_bundle
from sf_contract.command import run_command
from sf_contract.errors import SelfTestFailed, UsageError

if TYPE_CHECKING:
    from sf_contract.front_end import FrontEnd

_PLAIN_IDS: Final = (1, 2, 3, 4)
"""A graph alone does not tell its vocabulary; every one has these."""


class Job(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to run: bundle folders and ONNX files, `tokens` in one sequence, each counted `repeats` times."""

    targets: tuple[str, ...]
    tokens: int
    repeats: int


class SelfTest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The self-test of a bundle on the emulated processor; without an error where it was above the limit."""

    bundle_id: str
    passed: bool
    limit: float
    error: float | None = None
    problem: str = ""


class GuestReport(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the emulated process says about itself, and the self-test of each target; None for an ONNX file."""

    machine: str
    onnxruntime: str
    self_tests: tuple[SelfTest | None, ...]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one job, given as JSON."""
    return run_command("guest", _run, argv)


def _run(arguments: Sequence[str]) -> int:
    from sf_contract.front_end import RUNTIME_VERSION  # noqa: PLC0415

    job = msgspec.json.decode(arguments[0], type=Job)
    self_tests = []
    for target in map(Path, job.targets):
        self_test, run = _open_bundle(target, job.tokens) if target.is_dir() else _open_graph(target, job.tokens)
        self_tests.append(self_test)
        _count(run, job.repeats)
    report = GuestReport(machine=platform.machine(), onnxruntime=RUNTIME_VERSION, self_tests=tuple(self_tests))
    print(msgspec.json.encode(report).decode(), flush=True)
    return 0


def _open_bundle(folder: Path, tokens: int) -> tuple[SelfTest, Callable[[], object]]:
    from sf_contract.front_end import open_front_end  # noqa: PLC0415

    bundle = open_bundle(folder)
    front_end = open_front_end(bundle)
    ids = _repeat([id_ for each in bundle.manifest.self_test.token_ids for id_ in each], tokens)
    return _self_test(bundle, front_end), lambda: front_end.run([ids])


def _open_graph(file: Path, tokens: int) -> tuple[None, Callable[[], object]]:
    from sf_contract.front_end import open_session  # noqa: PLC0415

    session = open_session(file.read_bytes(), where=str(file))
    feeds = graph_feeds({each.name: (each.type, tuple(each.shape)) for each in session.get_inputs()}, tokens=tokens)
    return None, lambda: session.run(None, feeds)


def graph_feeds(
    inputs: Mapping[str, tuple[str, tuple[int | str | None, ...]]], *, tokens: int
) -> dict[str, npt.NDArray[np.generic]]:
    """Inputs for a graph: one sequence for those of a front end, random content for those of a fixed shape.

    Args:
        inputs: ONNX Runtime's type and shape of each input, by name.
        tokens: length of the sequence.

    Raises:
        UsageError: an input has neither a known name nor a known type and a fixed shape.
    """
    ids = np.array(_repeat(_PLAIN_IDS, tokens), dtype=np.int64)
    known = {
        "input_ids": ids[None],
        "attention_mask": np.ones((1, tokens), dtype=np.int64),
        "row_index": np.arange(tokens, dtype=np.int64),
    }
    return {name: known[name] if name in known else _random(name, *kind) for name, kind in inputs.items()}


def _random(name: str, kind: str, shape: tuple[int | str | None, ...]) -> npt.NDArray[np.generic]:
    dtypes = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8, "tensor(int8)": np.int8}
    fixed = [size for size in shape if isinstance(size, int)]
    if kind not in dtypes or len(fixed) != len(shape):
        raise UsageError(
            f"the graph's input {name} is {kind} of shape {list(shape)}; nothing is known to feed it",
            cure="give a front-end graph, or one whose inputs have fixed shapes",
        )
    return (np.abs(np.random.default_rng(0).standard_normal(fixed)) * 16).astype(dtypes[kind])


def _repeat(ids: Sequence[int], length: int) -> list[int]:
    return [ids[position % len(ids)] for position in range(length)]


def _self_test(bundle: Bundle, front_end: FrontEnd) -> SelfTest:
    from sf_contract.front_end import run_self_test  # noqa: PLC0415

    limit = bundle.manifest.self_test.max_mean_error
    try:
        error = run_self_test(bundle, front_end)
    except SelfTestFailed as problem:
        return SelfTest(bundle_id=bundle.bundle_id, passed=False, limit=limit, problem=problem.what)
    return SelfTest(bundle_id=bundle.bundle_id, passed=True, limit=limit, error=error)


def _count(run: Callable[[], object], repeats: int) -> None:
    """Run once to warm up, then `repeats` times between markers: the call whose occurrences the plugin notes."""
    run()
    os.getppid()
    for _ in range(repeats):
        run()
        os.getppid()


if __name__ == "__main__":
    sys.exit(main())
