"""The trainer process: trains one run from its store, and publishes the adapter.

Started by the supervisor as `python -m sf_server.training.process --run DIR`.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch

from sf_contract.command import ArgumentParser, print_json, run_command, say, usable_cores
from sf_server.pieces import Pieces, open_pieces
from sf_server.store.store import Store
from sf_server.supervision.parent import leave_with_parent
from sf_server.training.checkpoints import Checkpoints
from sf_server.training.learner import Learner
from sf_server.training.lora import LoraPlan, attach_lora, plan_lora, save_adapter
from sf_server.training.metrics import MetricsLog
from sf_server.training.model_card import model_card
from sf_server.training.trainer import Ending, Surroundings, Trainer

EXIT_TERMINATED: Final = 143


def main(argv: Sequence[str] | None = None) -> int:
    """Train; ends with 0 when the adapter is published, 143 after SIGTERM, or with the exit code of one of our errors."""
    return run_command("sf-server train", _train, argv)


def _train(arguments: Sequence[str]) -> int:
    parser = ArgumentParser(prog="sf-server trainer", description="Train a run; started by sf-server train.")
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="run folder")
    parser.add_argument("--json", action="store_true", help="errors as JSON")
    run = parser.parse_args(arguments).run
    leave_with_parent()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    pieces = open_pieces(run, say=_say)
    torch.set_num_threads(pieces.settings.threads or usable_cores())
    learner, plan = make_learner(pieces)
    _say(_described(plan, learner, pieces))
    checkpoints = Checkpoints(pieces.folder.checkpoints_path)
    around = Surroundings(say=_say, stopped=stop.is_set, wait=stop.wait, train_device=pieces.device)
    newest = checkpoints.load_newest()
    with (
        Store.open_read_only(pieces.folder.store_path, int4=pieces.bundle.int4_parameters()) as store,
        MetricsLog(pieces.folder.metrics_path, after_step=newest.progress.step if newest else 0) as metrics,
    ):
        trainer = Trainer(learner, store, pieces.settings, checkpoints=checkpoints, metrics=metrics, around=around)
        if trainer.restore():
            _say(f"going on after step {trainer.progress.step}, epoch {trainer.progress.position.epoch}")
        if trainer.run() is Ending.STOPPED:
            _say(f"stopped after step {trainer.progress.step}; --resume goes on from there")
            return EXIT_TERMINATED
        _publish(pieces, trainer, learner)
    return 0


def make_learner(pieces: Pieces) -> tuple[Learner, LoraPlan]:
    """A fresh learner as the run's settings ask for it, and what got LoRA; the same weights for the same seed."""
    settings = pieces.settings
    loaded = pieces.load_model()
    back_end = pieces.back_end(loaded)
    plan = plan_lora(
        back_end,
        targets=settings.lora_targets,
        rank=settings.lora_rank,
        alpha=settings.lora_alpha,
        dropout=settings.lora_dropout,
        new_modules=loaded.new_modules,
    )
    torch.manual_seed(settings.seed)
    attach_lora(back_end, plan, task=pieces.bundle.manifest.task.task, seed=settings.seed)
    back_end.to(pieces.device)
    learner = Learner(
        back_end,
        learning_rate=settings.learning_rate,
        head_learning_rate=settings.head_learning_rate,
        weight_decay=settings.weight_decay,
    )
    return learner, plan


def _described(plan: LoraPlan, learner: Learner, pieces: Pieces) -> str:
    weights = sum(parameter.numel() for parameter in learner.parameters.values())
    whole = f", and all of {', '.join(plan.new_modules)}" if plan.new_modules else ""
    return (
        f"LoRA rank {plan.rank}, alpha {plan.alpha:g} on {', '.join(plan.targets)} of layers "
        f"{plan.layers[0]}-{plan.layers[-1]}{whole}: {weights:,} weights learn; "
        f"base weights in {str(pieces.dtype).removeprefix('torch.')} on {pieces.device}"
    )


def _publish(pieces: Pieces, trainer: Trainer, learner: Learner) -> None:
    score = trainer.last_score
    base = pieces.bundle.manifest.base_model
    folder = pieces.folder.adapter_path
    save_adapter(
        learner.back_end,
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
        "samples_trained": sum(trainer.trained.values()),
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
