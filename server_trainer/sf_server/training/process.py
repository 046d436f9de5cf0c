"""The trainer process: trains one run from its store, and publishes the adapter.

Started by the supervisor as `python -m sf_server.training.process --run DIR`.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch

from sf_contract.command import ArgumentParser, print_json, run_command, say, usable_cores
from sf_model.back import Segment
from sf_server.bundles import check_store
from sf_server.pieces import Pieces, open_pieces
from sf_server.scale.nodes import known_samples
from sf_server.scale.orphans import leave_with_launcher
from sf_server.scale.place import Place, place_of
from sf_server.scale.team import Team, team_of
from sf_server.scale.world import Meeting, PeerLost
from sf_server.seeing.model_record import write_model_record
from sf_server.store.store import Store
from sf_server.supervision.parent import leave_with_parent
from sf_server.training.checkpoints import Checkpoints
from sf_server.training.duties import metrics_log, retention
from sf_server.training.lift import Lifts
from sf_server.training.lifting import lifting, lifts_of_run
from sf_server.training.lora import save_adapter
from sf_server.training.lora_record import describe_lora, record_of, write_lora_record
from sf_server.training.model_card import model_card
from sf_server.training.room import full_disk_by_name
from sf_server.training.trainer import Ending, Surroundings, Trainer

EXIT_TERMINATED: Final = 143
EXIT_PEER_LOST: Final = 75
"""None of our errors' codes: the supervisor starts all processes again. The number is that of a temporary failure in BSD."""


def main(argv: Sequence[str] | None = None) -> int:
    """Train; ends with 0 when the adapter is published, 143 after SIGTERM, or with the exit code of one of our errors."""
    return run_command("sf-server train", _train, argv)


def _train(arguments: Sequence[str]) -> int:
    parser = ArgumentParser(prog="sf-server trainer", description="Train a run; started by sf-server train.")
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="run folder")
    parser.add_argument("--meeting", default="", metavar="ADDRESS", help="where several trainer processes meet")
    parser.add_argument("--json", action="store_true", help="errors as JSON")
    options = parser.parse_args(arguments)
    leave_with_parent()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    pieces = open_pieces(options.run, say=_say)
    place = place_of(pieces.settings, os.environ)
    if place.local_ranks > 1:
        leave_with_launcher()
        _divide_machine(place, pieces)
    torch.set_num_threads(pieces.settings.threads or max(1, usable_cores() // place.local_ranks))
    meeting = Meeting(options.meeting or f"tcp://{pieces.settings.rendezvous}", pieces.settings.rank_timeout_s)
    try:
        return _train_at(place, meeting, pieces, stop)
    except PeerLost as lost:
        _say(f"{place} stops: {lost}")
        return EXIT_PEER_LOST


def _train_at(place: Place, meeting: Meeting, pieces: Pieces, stop: threading.Event) -> int:
    loaded = pieces.load_model()
    lifts = lifts_of_run(pieces, loaded.model)
    checkpoints = Checkpoints(pieces.folder.checkpoints_path, keep=pieces.settings.keep_checkpoints)
    with team_of(pieces, place, meeting, loaded) as team:
        team.settle_checkpoint(checkpoints)
        if place.leads:
            return _lead(team, pieces, lifts, checkpoints, stop)
        return _follow(team, pieces, lifts)


def _follow(team: Team, pieces: Pieces, lifts: Lifts | None) -> int:
    """Compute what the leader of the node says."""
    around = Surroundings(say=lambda _: None, stopped=lambda: False, wait=lambda _: None, train_device=pieces.device)
    team.wait_for_leader()
    with (
        Store.open_read_only(pieces.folder.store_path, int4=pieces.int4_parameters()) as store,
        lifting(around, pieces, lifts, store=store, back_end=team.learner.back_end) as lifted,
    ):
        team.follow(lifted, store)
    return 0


def _lead(team: Team, pieces: Pieces, lifts: Lifts | None, checkpoints: Checkpoints, stop: threading.Event) -> int:
    """Train, with the help of the node's other processes where it has any."""
    write_model_record(
        pieces.folder.path, {name: info.shape for name, info in pieces.checkpoint.weights.tensors.items()}
    )
    _tell_lora(team, pieces)
    around = team.among_nodes(
        Surroundings(
            say=_say,
            stopped=stop.is_set,
            wait=stop.wait,
            train_device=pieces.device,
            tidy=retention(pieces.folder, pieces.settings, say=_say),
        ),
        weight=lambda: known_samples(trainer.progress, pieces.settings),
    )
    newest = checkpoints.load_newest()
    after_step = newest.progress.step if newest else 0
    with (
        Store.open_read_only(pieces.folder.store_path, int4=pieces.int4_parameters()) as store,
        metrics_log(pieces.folder, pieces.settings, after_step=after_step, say=_say) as metrics,
        lifting(around, pieces, lifts, store=store, back_end=team.learner.back_end) as lifted,
    ):
        team.wait_for_leader()
        check_store(store.device_summaries(), pieces.bundles)
        trainer = Trainer(
            team.learner,
            store,
            pieces.settings,
            checkpoints=checkpoints,
            metrics=metrics,
            around=team.sharing(lifted, store, pieces),
        )
        if trainer.restore():
            _say(f"going on after step {trainer.progress.step}, epoch {trainer.progress.position.epoch}")
        ending = trainer.run()
        if ending is Ending.STOPPED:
            _say(f"stopped after step {trainer.progress.step}; --resume goes on from there")
        elif team.place.publishes:
            _publish(pieces, trainer, team.whole_back_end(pieces))
        else:
            _say(f"this node is done; node 0 publishes the adapter, after step {trainer.progress.step}")
        team.dismiss()
    return EXIT_TERMINATED if ending is Ending.STOPPED else 0


def _divide_machine(place: Place, pieces: Pieces) -> None:
    """Each process of a node computes on a GPU of its own, as far as there are any."""
    if pieces.device.type == "cuda":
        torch.cuda.set_device(place.local_rank % torch.cuda.device_count())


def _tell_lora(team: Team, pieces: Pieces) -> None:
    record = record_of(team.plan, weights=team.learner.size())
    write_lora_record(pieces.folder.lora_path, record)
    dtype = str(pieces.dtype).removeprefix("torch.")
    _say(f"{describe_lora(record)}; base weights in {dtype} on {pieces.device}")


def _publish(pieces: Pieces, trainer: Trainer, back_end: Segment) -> None:
    score = trainer.last_score
    base = pieces.bundle.manifest.base_model
    folder = pieces.folder.adapter_path
    with full_disk_by_name(folder):
        save_adapter(
            back_end,
            folder,
            base_name=base.name if base.revision else str(pieces.checkpoint.folder),
            revision=base.revision,
            card=model_card(pieces, trainer.progress, score),
        )
    progress = trainer.progress
    result = {
        "adapter": str(folder),
        "epochs": pieces.settings.epochs,
        "samples": progress.samples,
        "samples_trained": progress.samples_trained,
        "steps": progress.step,
        "skipped_steps": progress.skipped_steps,
        "validation": None if score is None else score.as_dict(),
    }
    if pieces.settings.json:
        print_json(result)
    run = pieces.folder.path
    _say(
        f"{progress.samples} samples were trained exactly {pieces.settings.epochs} times each in {progress.step} steps"
    )
    _say(f"the adapter is in {folder}; it loads with peft.PeftModel.from_pretrained. Next:")
    _say(f'  sf-server predict --run {run} "a text to try"')
    _say(f"  sf-server merge --run {run} --out {run / 'merged'}")


def _say(text: str) -> None:
    say(f"sf-server train: {text}")


if __name__ == "__main__":
    sys.exit(main())
