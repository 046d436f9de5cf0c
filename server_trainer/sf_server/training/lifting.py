"""Lifting in a run: which samples it concerns, and the training loop's surroundings when there are any."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from transformers import PreTrainedModel

from sf_model.back import Segment
from sf_server.bundles import cut_of
from sf_server.pieces import Pieces
from sf_server.store.store import Store
from sf_server.training.feed import Feed, SampleSource
from sf_server.training.lift import Lifter, Lifts, make_lifts
from sf_server.training.lifted import LiftedFile, LiftedIdentity, RowsDtype
from sf_server.training.surroundings import Surroundings


def lifts_of_run(pieces: Pieces, model: PreTrainedModel) -> Lifts | None:
    """What lifts a run's samples to the first layer with LoRA; None when all of them come to it as they are.

    Args:
        model: not yet taken apart for the back end; it is left whole, and its weights are shared.
    """
    cuts = {bundle.bundle_id: cut_of(bundle) for bundle in pieces.bundles}
    return make_lifts(model, cuts=cuts, layer=pieces.first_layer, device=pieces.device)


@contextmanager
def lifting(
    around: Surroundings, pieces: Pieces, lifts: Lifts | None, *, store: Store, back_end: Segment
) -> Iterator[Surroundings]:
    """Surroundings in which every sample reaches the training loop as it enters the first layer with LoRA, some ahead of time.

    Raises:
        StoreError, DiskFull: the file of lifted samples cannot be used.
    """

    def open_store() -> Store:
        return Store.open_read_only(pieces.folder.store_path, int4=pieces.int4_parameters())

    prefetch = pieces.settings.prefetch
    if lifts is None:
        feed = Feed(store, back_end, around.train_device, prefetch=prefetch, open_source=open_store)
        yield dataclasses.replace(around, feed=feed)
        return
    with LiftedFile.open(pieces.folder.lifted_path, identity_of(pieces, lifts), say=around.say) as lifted:
        around.say(
            f"samples of cut {', '.join(map(str, lifts.segments))} are lifted to layer {lifts.layer} once and kept"
        )
        lifter = Lifter(
            lifts,
            lifted,
            store,
            device=around.train_device,
            say=around.say,
            stopped=around.stopped,
            clock=around.clock,
        )
        source = lifter.source(store)

        @contextmanager
        def open_source() -> Iterator[SampleSource]:
            with open_store() as own:
                yield lifter.source(own)

        feed = Feed(source, back_end, around.train_device, prefetch=prefetch, open_source=open_source)
        yield dataclasses.replace(around, feed=feed, source=source, prepare=lifter.prepare)


def identity_of(pieces: Pieces, lifts: Lifts) -> LiftedIdentity:
    """What the lifted rows of a run depend on."""
    base = pieces.checkpoint.identity
    return LiftedIdentity(
        weights_sha256=base.weights_sha256,
        config_sha256=base.config_sha256,
        layer=lifts.layer,
        hidden=pieces.bundle.manifest.geometry.hidden,
        dtype=dtype_name(lifts.dtype()),
    )


def dtype_name(dtype: torch.dtype) -> RowsDtype:
    """PyTorch's name of a dtype."""
    return cast(RowsDtype, str(dtype).removeprefix("torch."))
