"""What `sf-edge bench --help` says, and its options: light, since every command line is parsed with them."""

from __future__ import annotations

import argparse
from typing import Final

DESCRIPTION: Final = """\
How fast does this bundle run on this machine, and with how much memory and energy?
A process of its own first does what sf-edge run does before its first row, which gives start-up times and memory. Then every
shape with every number of threads is timed, in rounds, in an order that changes, so that a machine that gets slower gets
slower for all. Each number of threads is opened anew for its turn and closed after it."""

EPILOG: Final = """\
shapes are ROWSxTOKENS: 4x64 is four samples of 64 tokens in one forward pass. sf-edge run computes one sample at a time.

how to read it: p50 is the usual time of a pass, p99 what a slow one takes; CPU ms count all threads, so with 2 threads they
may be more although the pass is shorter; energy is of the whole processor or device, with whatever else runs there, and has a
reason where it cannot be read (RAPL often needs root). Run it on a device as it will be used: warm, on battery, in its case.

--tune keeps the number of threads that pays: twice as many must bring 1.2 times the speed, as others use the device too. It
holds for this bundle, this processor and this ONNX Runtime; sf-edge run uses it when --threads is not given. On a machine that
other programs keep busy nothing is stored: there, two threads look fast because they take twice as much from the others.

A folder with several quantizations of one front end is fine: the fastest that passes its self-test here is measured.

examples:
  sf-edge bench bundle/
  sf-edge bench bundle/ --tune                                       and let sf-edge run use the best
  sf-edge bench bundle/ --shapes 1x16,1x128,8x128 --threads 1,2 --seconds 60
  sf-edge bench bundle/ --json > this-device.json                    for another program (sf_edge/bench/report.py)"""


def add_bench_options(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add = parser.add_argument
    add("bundle", metavar="BUNDLE", help="bundle folder, or a folder of several quantizations of one front end")
    add("--shapes", metavar="RxT,RxT", help="samples x tokens per pass (default 1x16,1x64,4x64)")
    add("--threads", metavar="N,N", help="numbers of threads (default 1,2,4, as far as there are processors)")
    add("--rounds", type=int, metavar="N", help="turns of each combination (default 5)")
    add("--seconds", type=float, metavar="S", help="all timed passes together take about this long (default 20)")
    add("--tune", action="store_true", help="keep the best number of threads for sf-edge run")
    add("--trust", metavar="FILE|DIR", help="public keys (.pub) whose bundles are accepted")
