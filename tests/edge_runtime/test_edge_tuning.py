"""Fair turns, what the numbers say, and what is kept of them."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import pytest

from sf_edge.bench.energy import Mark
from sf_edge.bench.machine import Machine, describe_machine, machine_digest
from sf_edge.bench.report import CellResult, Shape
from sf_edge.bench.tuning import (
    Contest,
    Tried,
    Tuning,
    advise,
    best_batch,
    choose_quantization,
    contest_key,
    must_gain,
    threads_that_pay,
)
from sf_edge.bench.tuning_files import contest_path, read_contest, read_tuning, tuning_path, write_record
from sf_edge.bench.turns import (
    FEWEST_RUNS,
    MOST_RUNS,
    WARM_UP_RUNS,
    Effort,
    Instruments,
    Measured,
    Turn,
    summarise,
    take_turns,
)

ONE, MANY = Shape(1, 16), Shape(4, 16)
INPUTS = {ONE: [[1] * 16], MANY: [[1] * 16] * 4}


class Bench:
    """A clock that only forward passes move, and front ends that take as long as they are told."""

    def __init__(self) -> None:
        self.at_s = 0.0
        self.log: list[str] = []
        self.open = 0

    def opener(self, threads: int, times_s: Sequence[float]):
        def opened() -> FrontEnd:
            self.at_s += 1.0
            self.log.append(f"open {threads}")
            return FrontEnd(self, threads, times_s)

        return opened

    def instruments(self, **more: object) -> Instruments:
        return Instruments(now_s=lambda: self.at_s, cpu_s=lambda: self.at_s / 2, **more)


class FrontEnd:
    def __init__(self, bench: Bench, threads: int, times_s: Sequence[float]) -> None:
        self._bench, self._threads, self._times_s, self._runs = bench, threads, times_s, 0

    def run(self, sequences: Sequence[Sequence[int]]) -> object:
        self._bench.log.append(f"run {self._threads} {len(sequences)}")
        self._bench.at_s += self._times_s[self._runs % len(self._times_s)]
        self._runs += 1
        return None


def cell(rows: int, tokens: int, threads: int, tokens_per_s: float) -> CellResult:
    return CellResult(Shape(rows, tokens), threads, 9, 1.0, 1.0, 1.0, tokens_per_s, 1.0)


def test_everyone_has_one_turn_per_round_after_a_fresh_opening_and_a_warm_up() -> None:
    bench = Bench()
    measured = take_turns(
        {1: bench.opener(1, [0.5]), 2: bench.opener(2, [0.5])},
        INPUTS,
        Effort(rounds=3, seconds=0.001),
        instruments=bench.instruments(),
        random=Random(1),
    )
    assert [len(turn.walls_s) for turn in measured.turns] == [FEWEST_RUNS] * 12
    assert bench.log.count("open 1") == bench.log.count("open 2") == 3
    assert bench.log.count("run 1 4") == 3 * (FEWEST_RUNS + WARM_UP_RUNS)
    assert {opening.load_s for opening in measured.openings} == {1.0}


def test_the_order_changes_from_round_to_round() -> None:
    bench = Bench()
    measured = take_turns(
        {threads: bench.opener(threads, [0.5]) for threads in (1, 2, 3)},
        INPUTS,
        Effort(rounds=6, seconds=0.001),
        instruments=bench.instruments(),
        random=Random(1),
    )
    keys = [opening.key for opening in measured.openings]
    rounds = [tuple(keys[i : i + 3]) for i in range(0, 18, 3)]
    assert all(sorted(order) == [1, 2, 3] for order in rounds)
    assert len(set(rounds)) > 1


def test_the_time_is_shared_between_the_turns_and_never_endless() -> None:
    bench = Bench()
    measured = take_turns(
        {1: bench.opener(1, [0.01])},
        {ONE: INPUTS[ONE]},
        Effort(rounds=2, seconds=4.0),
        instruments=bench.instruments(),
        random=Random(1),
    )
    assert [round(sum(turn.walls_s), 1) for turn in measured.turns] == [2.0, 2.0]
    bench = Bench()
    (turn,) = take_turns(
        {1: bench.opener(1, [0.0])},
        {ONE: INPUTS[ONE]},
        Effort(rounds=1, seconds=4.0),
        instruments=bench.instruments(),
        random=Random(1),
    ).turns
    assert len(turn.walls_s) == MOST_RUNS


def test_a_cell_is_summed_up_over_all_its_turns() -> None:
    class Steady:
        source = "a meter"

        def mark(self) -> Mark:
            return Mark(0.0, (0.0,))

        def joules(self, begin: Mark, end: Mark) -> float:
            return 3.0

    bench = Bench()
    # Two passes warm up, then three are timed: 0.1, 0.2 and 0.3 seconds.
    measured = take_turns(
        {2: bench.opener(2, [9.0, 9.0, 0.1, 0.2, 0.3])},
        {MANY: INPUTS[MANY]},
        Effort(rounds=2, seconds=0.001),
        instruments=bench.instruments(meter=Steady()),
        random=Random(1),
    )
    (found,) = summarise(measured)
    assert (found.shape, found.threads, found.runs) == (MANY, 2, 6)
    assert found.p50_ms == pytest.approx(200)
    assert found.p99_ms == pytest.approx(300)
    assert found.tokens_per_s == pytest.approx(64 / 0.2)
    assert found.cpu_ms == pytest.approx(100)
    assert found.joules_per_1000_tokens == pytest.approx(6.0 / (64 * 6) * 1000)


def test_energy_of_some_turns_only_is_no_number() -> None:
    turns = (Turn(1, ONE, (0.1,), 0.1, 3.0), Turn(1, ONE, (0.1,), 0.1, None))
    assert summarise(Measured(turns, ()))[0].joules_per_1000_tokens is None


@pytest.mark.parametrize(
    ("speeds", "chosen"),
    [
        ({1: 100.0}, 1),
        ({1: 100.0, 2: 119.0}, 1),
        ({1: 100.0, 2: 121.0}, 2),
        ({1: 100.0, 2: 110.0, 4: 145.0}, 4),  # more than 1.44 times the single thread
        ({1: 100.0, 2: 130.0, 4: 150.0}, 2),  # less than 1.2 times two threads
        ({2: 100.0, 4: 90.0}, 2),
    ],
)
def test_more_threads_must_pay(speeds, chosen) -> None:
    assert threads_that_pay(speeds) == chosen


def test_each_doubling_must_gain_a_fifth() -> None:
    assert must_gain(2) == pytest.approx(1.2)
    assert must_gain(4) == pytest.approx(1.44)


def test_advice_is_for_one_sample_at_a_time_and_tells_what_batches_would_bring() -> None:
    cells = [cell(1, 64, 1, 100), cell(4, 64, 1, 150), cell(8, 64, 1, 90), cell(1, 64, 2, 105), cell(4, 64, 2, 900)]
    found = advise(cells, processor_share=0.99)
    assert found.is_reliable
    assert (found.threads, found.tokens_per_s) == (1, pytest.approx(100))
    assert found.batch is not None
    assert (found.batch.rows, found.batch.gain) == (4, pytest.approx(1.5))


def test_on_a_busy_machine_more_threads_get_no_credit_for_what_they_take_from_others() -> None:
    cells = [cell(1, 64, 1, 100), cell(1, 64, 2, 250)]
    assert advise(cells, processor_share=0.95).threads == 2
    busy = advise(cells, processor_share=0.5)
    assert (busy.threads, busy.is_reliable) == (1, False)
    assert "busy" in busy.reason


def test_batches_are_compared_with_single_samples_of_the_same_length_only() -> None:
    assert best_batch([cell(1, 16, 1, 100), cell(4, 64, 1, 900)]) is None


IDS = ["a" * 64, "b" * 64, "c" * 64]


@pytest.mark.parametrize(
    ("speeds", "errors", "former", "chosen"),
    [
        ((100, 200, 150), (0.1, 0.1, 0.1), None, 1),
        ((200, 196, 150), (0.1, 0.05, 0.01), None, 1),  # nearly as fast, and closer to the original
        ((100, 108, 50), (0.1, 0.1, 0.1), 0, 0),  # another choice would start another outbox
        ((100, 120, 50), (0.1, 0.1, 0.1), 0, 1),
    ],
)
def test_the_fastest_wins_unless_it_is_no_gain(speeds, errors, former, chosen) -> None:
    found, reason = choose_quantization(
        dict(zip(IDS, map(float, speeds), strict=True)),
        dict(zip(IDS, errors, strict=True)),
        former=None if former is None else IDS[former],
    )
    assert found == IDS[chosen]
    assert reason


def test_a_former_choice_that_failed_this_time_has_no_say() -> None:
    assert choose_quantization({IDS[1]: 1.0}, {IDS[1]: 0.1}, former=IDS[0])[0] == IDS[1]


TUNING = Tuning(
    bundle_id=IDS[0], machine_digest=IDS[1], machine="a machine", onnxruntime="1.0", threads=2, tokens_per_s=99.0
)


def test_tuning_is_read_back_on_the_same_machine_without_a_word(tmp_path) -> None:
    said: list[str] = []
    path = tuning_path(tmp_path / "new", IDS[0])
    write_record(path, TUNING)
    assert read_tuning(path, bundle_id=IDS[0], machine_digest=IDS[1], say=said.append) == TUNING
    assert said == []
    assert [file.name for file in path.parent.iterdir()] == [f"{IDS[0]}.json"]


@pytest.mark.parametrize(
    ("bundle_id", "machine", "word"), [(IDS[0], IDS[2], "another machine"), (IDS[2], IDS[1], "another bundle")]
)
def test_tuning_of_another_machine_or_bundle_is_ignored_and_said(tmp_path, bundle_id, machine, word) -> None:
    said: list[str] = []
    path = tmp_path / "copied.json"
    write_record(path, TUNING)
    assert read_tuning(path, bundle_id=bundle_id, machine_digest=machine, say=said.append) is None
    assert len(said) == 1
    assert word in said[0]


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"\xff\xfe", b"[" * 20_000, b'{"schema_version":2}', b'{"threads":0}', b"null"],
)
def test_a_damaged_file_is_ignored_and_said(tmp_path, raw) -> None:
    said: list[str] = []
    (tmp_path / "t.json").write_bytes(raw)
    assert read_tuning(tmp_path / "t.json", bundle_id=IDS[0], machine_digest=IDS[1], say=said.append) is None
    assert read_contest(tmp_path / "t.json", say=said.append) is None
    assert [line for line in said if "is damaged and is ignored" not in line] == []
    assert len(said) == 2


def test_something_else_than_a_file_is_ignored_and_said_and_nothing_is_fine(tmp_path) -> None:
    said: list[str] = []
    assert read_contest(tmp_path / "missing.json", say=said.append) is None
    assert said == []
    assert read_contest(tmp_path, say=said.append) is None
    assert "cannot be read and is ignored" in said[0]


def test_a_contest_is_named_by_who_took_part_in_any_order(tmp_path) -> None:
    contest = Contest(machine_digest=IDS[2], tried=(Tried(IDS[0], 5.0), Tried(IDS[1], failure="bad")), chosen=IDS[0])
    write_record(contest_path(tmp_path, IDS[:2]), contest)
    assert read_contest(contest_path(tmp_path, IDS[1::-1]), say=print) == contest
    assert contest_key(IDS) != contest_key(IDS[:2])


def test_a_digest_is_of_what_decides_speed_and_of_nothing_that_changes_by_itself() -> None:
    machine = Machine("x86_64 A", 4, ("avx2",), kernel="6.1", governor="powersave", memory_bytes=1)
    same = Machine("x86_64 A", 4, ("avx2",), kernel="6.2", governor="performance", memory_bytes=2)
    digest = machine_digest(machine, onnxruntime="1")
    assert machine_digest(same, onnxruntime="1") == digest
    others = [Machine("x86_64 B", 4, ("avx2",)), Machine("x86_64 A", 2, ("avx2",)), Machine("x86_64 A", 4, ())]
    digests = [machine_digest(other, onnxruntime="1") for other in others] + [machine_digest(machine, onnxruntime="2")]
    assert len({digest, *digests}) == 5


def test_a_board_is_named_by_its_device_tree_and_its_core(tmp_path) -> None:
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/device-tree/model").write_bytes(b"Raspberry Pi 5 Model B Rev 1.0\0")
    (tmp_path / "proc/cpuinfo").write_text("processor\t: 0\nFeatures\t: fp asimd asimddp\nCPU part\t: 0xd0b\n")
    (tmp_path / "proc/meminfo").write_text("MemTotal:        8000000 kB\n")
    found = describe_machine(tmp_path)
    assert "Raspberry Pi 5 Model B Rev 1.0, CPU part 0xd0b" in found.processor
    assert found.flags == ("asimddp",)
    assert found.memory_bytes == 8_000_000 * 1024
