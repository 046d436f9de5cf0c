"""Lifting: samples pass the frozen layers between their device's cut and the first layer with LoRA once, and are kept.

Samples of devices with unlike cuts so become rows of one kind, and no epoch computes these layers again. A window is
lifted in groups that follow from the window alone, written in their order: after an interruption what is missing is lifted
in the same groups, to the same bits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import torch
from transformers import PreTrainedModel

from sf_contract.errors import MismatchError
from sf_model.back import PadSide, Segment
from sf_model.taking_apart import sharing_weights
from sf_server.store.stored import Origin, SampleInfo, StoredSample
from sf_server.training.batch_tensors import decode_to_tensor
from sf_server.training.lifted import LiftedFile, LiftedSample, RawRows

GROUP_TOKENS: Final = 2048
"""Tokens that are lifted together, padding included. A constant: other groups give other roundings."""
CHECKED_AT_ONCE: Final = 5_000
SAY_EVERY_S: Final = 10.0


class OriginSource(Protocol):
    """What lifting needs of the store."""

    def load(self, seqs: Sequence[int]) -> list[StoredSample]:
        """Samples in the order asked for."""
        ...

    def origins(self, seqs: Sequence[int]) -> dict[int, Origin]:
        """Where samples come from, by `seq`, of those that are in the store."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Lifts:
    """The frozen layers that samples pass.

    Attributes:
        layer: the layer at which training enters the model.
        cuts: cut of each bundle, by bundle id.
        segments: for each cut below `layer`, the model from there to `layer`. They share all weights they have in common.
    """

    layer: int
    cuts: Mapping[str, int]
    segments: Mapping[int, Segment]

    def cut_of(self, origin: Origin) -> int:
        """The cut of a sample.

        Raises:
            MismatchError: it belongs to a bundle that is not of this run.
        """
        cut = self.cuts.get(origin.bundle_id)
        if cut is None:
            raise MismatchError(
                f"the store holds samples of bundle {origin.bundle_id[:12]}, which is not one of the run's",
                cure="give the run folder that these samples were sent to",
            )
        return cut

    def dtype(self) -> torch.dtype:
        """What the segments compute in."""
        segment = next(iter(self.segments.values()))
        return next(parameter.dtype for parameter in segment.parameters() if parameter.is_floating_point())


def make_lifts(
    model: PreTrainedModel,
    *,
    cuts: Mapping[str, int],
    layer: int,
    device: torch.device,
    pad_side: PadSide | None = None,
) -> Lifts | None:
    """Segments from each cut to `layer`, sharing the model's weights; None when no sample needs lifting.

    The model is left whole: take it apart for the back end afterwards, before it gets LoRA.
    """
    below = sorted({cut for cut in cuts.values() if cut < layer})
    if not below:
        return None
    segments = {
        cut: Segment(sharing_weights(model), cut, until=layer, pad_side=pad_side).to(device).eval() for cut in below
    }
    return Lifts(layer=layer, cuts=dict(cuts), segments=segments)


class Lifter:
    """Lifts what training is about to need."""

    def __init__(
        self,
        lifts: Lifts,
        lifted: LiftedFile,
        store: OriginSource,
        *,
        device: torch.device,
        say: Callable[[str], None],
        stopped: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lifts = lifts
        self._lifted = lifted
        self._store = store
        self._device = device
        self._say = say
        self._stopped = stopped
        self._clock = clock

    def prepare(self, infos: Sequence[SampleInfo]) -> None:
        """See that samples can be loaded as they enter the first layer with LoRA; returns early when stopped.

        Raises:
            MismatchError: one belongs to a bundle that is not of this run.
            DiskFull: there is no room for the lifted rows.
        """
        missing, origins = self._missing(infos)
        progress = _Progress(missing, layer=self._lifts.layer, say=self._say, clock=self._clock)
        for cut, group in _groups(missing, lambda info: self._lifts.cut_of(origins[info.seq])):
            if self._stopped():
                return
            self._lift(group, origins, self._lifts.segments[cut])
            progress.done(group)

    def source(self, store: OriginSource) -> LiftedSource:
        """Where training reads from; `store` must belong to the thread that reads."""
        return LiftedSource(self._lifts, self._lifted, store)

    def _missing(self, infos: Sequence[SampleInfo]) -> tuple[list[SampleInfo], dict[int, Origin]]:
        """Samples still to be lifted, and where they come from."""
        missing: list[SampleInfo] = []
        origins: dict[int, Origin] = {}
        for start in range(0, len(infos), CHECKED_AT_ONCE):
            part = infos[start : start + CHECKED_AT_ONCE]
            found = self._missing_origins([info.seq for info in part])
            missing += [info for info in part if info.seq in found]
            origins |= found
        return missing, origins

    def _missing_origins(self, seqs: Sequence[int]) -> dict[int, Origin]:
        """Of those to be lifted; what was lifted from others that had their numbers is removed."""
        origins = self._store.origins(seqs)
        present = self._lifted.present(first_seq=min(seqs), last_seq=max(seqs))
        strange = [seq for seq, origin in present.items() if seq in origins and origins[seq] != origin]
        if strange:
            self._lifted.forget(strange)
        return {
            seq: origin
            for seq, origin in origins.items()
            if self._lifts.cut_of(origin) < self._lifts.layer and (seq not in present or seq in strange)
        }

    @torch.inference_mode()
    def _lift(self, group: Sequence[SampleInfo], origins: Mapping[int, Origin], segment: Segment) -> None:
        samples = self._store.load([info.seq for info in group])
        rows, mask = segment.pad([decode_to_tensor(sample.rows) for sample in samples])
        left = segment(rows.to(self._device), mask.to(self._device)).cpu()
        self._lifted.add(
            [
                LiftedSample(
                    seq=sample.seq,
                    origin=origins[sample.seq],
                    device=sample.device,
                    label=sample.label,
                    targets=sample.targets,
                    rows=raw_rows(own[real > 0]),
                )
                for sample, own, real in zip(samples, left, mask.cpu(), strict=True)
            ]
        )
        gone = {sample.seq for sample in samples} - self._store.origins([sample.seq for sample in samples]).keys()
        if gone:  # forgotten in the meantime, and perhaps just before their lifted rows were written
            self._lifted.forget(sorted(gone))


class LiftedSource:
    """Samples as they enter the first layer with LoRA: lifted ones, and from the store those whose cut is there."""

    def __init__(self, lifts: Lifts, lifted: LiftedFile, store: OriginSource) -> None:
        self._lifts = lifts
        self._lifted = lifted
        self._store = store

    def load(self, seqs: Sequence[int]) -> list[StoredSample]:
        """Samples in the order asked for; they were prepared before.

        Raises:
            StoreError: one of them is not in the store.
            RuntimeError: one of them was not lifted.
        """
        found = self._lifted.load(seqs)
        others = [seq for seq in seqs if seq not in found]
        if others:
            origins = self._store.origins(others)
            unlifted = [seq for seq, origin in origins.items() if self._lifts.cut_of(origin) < self._lifts.layer]
            if unlifted:
                raise RuntimeError(f"sample {unlifted[0]} was asked for before it was lifted")
            found |= {sample.seq: sample for sample in self._store.load(others)}
        return [found[seq] for seq in seqs]


def raw_rows(rows: torch.Tensor) -> RawRows:
    """Rows `[tokens, hidden]` as the bytes they are made of, `[tokens, bytes of a row]`."""
    return rows.contiguous().view(torch.uint8).numpy()


def _groups(infos: Sequence[SampleInfo], cut_of: Callable[[SampleInfo], int]) -> Iterator[tuple[int, list[SampleInfo]]]:
    """Samples of one cut and similar length, at most `GROUP_TOKENS` padded tokens, in an order that is always the same.

    Whatever number of groups is taken away in front, the others stay as they are.
    """
    group: list[SampleInfo] = []
    group_cut = 0
    for cut, info in sorted(((cut_of(info), info) for info in infos), key=lambda p: (p[0], p[1].tokens, p[1].seq)):
        if group and (cut != group_cut or (len(group) + 1) * info.tokens > GROUP_TOKENS):
            yield group_cut, group
            group = []
        group_cut = cut
        group.append(info)
    if group:
        yield group_cut, group


class _Progress:
    """Says how far a lift is, when it takes long."""

    def __init__(
        self, infos: Iterable[SampleInfo], *, layer: int, say: Callable[[str], None], clock: Callable[[], float]
    ) -> None:
        self._samples = self._tokens = 0
        self._all = sum(1 for _ in infos)
        self._layer = layer
        self._say = say
        self._clock = clock
        self._began_s = self._said_s = clock()

    def done(self, group: Sequence[SampleInfo]) -> None:
        """Count a group."""
        self._samples += len(group)
        self._tokens += sum(info.tokens for info in group)
        now_s = self._clock()
        if now_s - self._said_s >= SAY_EVERY_S:
            self._said_s = now_s
            rate = self._tokens / (now_s - self._began_s)
            self._say(
                f"lifting samples to layer {self._layer}: {self._samples:,} of {self._all:,}, {rate:.0f} tokens/s"
            )
