"""A worker: runs one front end in one runtime when it is told to, and waits otherwise.

Started as `python -m sf_bench.rivals.worker`. Standard output belongs to the conversation; what libraries print goes to
standard error, which is the worker's log.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback

from sf_bench.rivals.protocol import Job, Runtime, decode_job, replies


def main() -> int:
    """Serve until the parent closes the pipe."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        try:
            job = decode_job(sys.stdin.readline())
            for reply in replies(_open(job), job, iter(sys.stdin)):
                print(json.dumps(reply), file=answers, flush=True)
        except Exception as problem:  # whatever a library raises becomes the reason that stands in the table
            traceback.print_exc()
            print(json.dumps({"failed": f"{type(problem).__name__}: {problem}"}), file=answers, flush=True)
            return 1
    return 0


def _open(job: Job) -> Runtime:
    runtime: Runtime = importlib.import_module(f"sf_bench.rivals.runtime_{job.runtime}").open_runtime(job)
    return runtime


if __name__ == "__main__":
    sys.exit(main())
