"""A worker: prepares the samples, or is one contestant that trains when it is told to and waits otherwise.

Started as `python -m sf_bench.training.worker JOB`. Standard output belongs to the conversation; what libraries print goes
to standard error, which is the worker's log.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable

import msgspec
import torch

from sf_bench.training.base import Base, open_base
from sf_bench.training.protocol import Failed, Job, Reply
from sf_contract.command import let_idle_threads_sleep


def main() -> int:
    """Serve until the parent closes the pipe."""
    let_idle_threads_sleep()
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)

        def reply(what: Reply) -> None:
            answers.write(msgspec.json.encode(what) + b"\n")
            answers.flush()

        try:
            _work(msgspec.json.decode(sys.argv[1], type=Job), reply)
        except Exception as problem:  # whatever a library raises becomes the reason that stands in the report
            traceback.print_exc()
            reply(Failed(f"{type(problem).__name__}: {problem}"))
            return 1
    return 0


def _work(job: Job, reply: Callable[[Reply], None]) -> None:
    torch.set_num_threads(job.settings.threads)
    base = open_base(job.settings)
    if job.name == "prepare":
        from sf_bench.training.workload import prepare  # noqa: PLC0415

        reply(prepare(base))
        return
    _contestant(job.name, base)(iter(sys.stdin), reply)


def _contestant(name: str, base: Base) -> Callable[..., None]:
    """Each loads only what it needs: the other one's libraries would count as its memory."""
    if name.startswith("split"):
        from sf_bench.training.ours import SplitTraining  # noqa: PLC0415

        return SplitTraining(base, lifted=name == "split-lifted").serve
    from sf_bench.training.hugging_face import WholeTraining  # noqa: PLC0415

    lifted_from = base.settings.lora_first_layer or base.split_layer
    first = {"hugging-face-upper": base.split_layer, "hugging-face-lifted-layers": lifted_from}
    return WholeTraining(base, first_layer=first.get(name, 0), by_length=name == "hugging-face-by-length").serve


if __name__ == "__main__":
    sys.exit(main())
