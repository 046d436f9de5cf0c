"""A sample's way from the graph to the trainer's tensor: what the device encoded is what the back end reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sf_contract.activations import EncodedSample, pack, unpack
from sf_contract.codec import WireCodec, bytes_per_token, decode_rows, relative_row_errors
from sf_contract.frames import decode, encode
from sf_contract.front_end import FrontEnd
from sf_contract.int4 import Int4Parameters, calibrate
from sf_contract.messages import ActivationBatch, Role
from sf_edge.outbox.queue import Outbox
from sf_edge.outbox.records import Owner
from sf_edge.sources import SourcePosition
from sf_export.graph import export_graph, serialize
from sf_model.checkpoint import load_model, open_checkpoint
from sf_model.front import FrontModel, cut_front
from sf_server.store.store import Store
from sf_server.training.batch_tensors import decode_to_tensor
from support.tiny_models import HIDDEN

BUNDLE = "b" * 64
SEQUENCES = [[5, 9, 33, 7, 12], [11], [60, 3, 18, 41, 6, 6, 6]]


@pytest.mark.slow
@pytest.mark.parametrize("codec", [WireCodec.INT8, WireCodec.INT4])
def test_rows_reach_the_trainer_as_the_graph_encoded_them(tiny_model, tmp_path: Path, codec: WireCodec) -> None:
    front = cut_front(load_model(open_checkpoint(str(tiny_model("llama"))), task=None, dtype=torch.float32).model, 2)
    plain = [_fp32_rows(front, sequence) for sequence in SEQUENCES]
    int4 = calibrate(np.concatenate([_fp32_rows(front, list(range(n, n + 12))) for n in range(1, 49, 12)]))
    graph = serialize(export_graph(front, hidden=HIDDEN, codec=codec, int4=int4))
    encoded = FrontEnd(graph, codec=codec, int4=int4).run(SEQUENCES)

    sent = _through_the_outbox(encoded, tmp_path, codec)
    assert sum(s.nbytes for s in sent) == sum(map(len, SEQUENCES)) * bytes_per_token(codec, HIDDEN)
    loaded = _through_wire_and_store(sent, tmp_path, codec, int4)
    for before, after, exact in zip(encoded, loaded, plain, strict=True):
        assert np.array_equal(after.numpy(), decode_rows(before))
        assert relative_row_errors(after.numpy(), exact).mean() < 0.15


def _through_the_outbox(encoded: list, folder: Path, codec: WireCodec) -> list[EncodedSample]:
    owner = Owner(bundle_id=BUNDLE, device="pi", codec=codec, hidden=HIDDEN)
    with Outbox(folder, owner=owner, max_bytes=10**6) as outbox:
        for ordinal, rows in enumerate(encoded):
            sample = EncodedSample(ordinal=ordinal, role=Role.TRAIN, rows=rows, label=ordinal)
            outbox.append(sample, SourcePosition(ordinal + 1, "d"))
        outbox.commit()
        return outbox.load(list(range(len(encoded))))


def _through_wire_and_store(
    samples: list[EncodedSample], folder: Path, codec: WireCodec, int4: Int4Parameters
) -> list[torch.Tensor]:
    envelope = decode([bytes(frame) for frame in encode(*pack(BUNDLE, samples))])
    assert isinstance(envelope.message, ActivationBatch)
    received = unpack(envelope.message, envelope.buffers, codec=codec, hidden=HIDDEN, with_targets=False)
    assert all(sample.rows.is_finite() for sample in received)
    path = folder / "store.sqlite"
    with Store.open(path, max_bytes=10**7) as store:
        store.note_hello(
            device="pi", outbox="1" * 32, bundle_id=BUNDLE, self_test_error=0.0, waiting_samples=3, now_s=1.0
        )
        store.add(device="pi", outbox="1" * 32, bundle_id=BUNDLE, samples=received)
    with Store.open_read_only(path, int4={BUNDLE: int4}) as store:
        return [decode_to_tensor(sample.rows) for sample in store.load([1, 2, 3])]


@torch.no_grad()
def _fp32_rows(front: FrontModel, sequence: list[int]) -> np.ndarray:
    token_ids = torch.tensor([sequence])
    rows: np.ndarray = front(token_ids, torch.ones_like(token_ids))[0].numpy()
    return rows
