"""A learner as a run's settings ask for it."""

from __future__ import annotations

import torch

from sf_model.back import Segment
from sf_model.checkpoint import LoadedModel
from sf_server.pieces import Pieces
from sf_server.training.learner import Learner
from sf_server.training.lora import LoraPlan, attach_lora, plan_lora
from sf_server.training.speed import speed_up


def make_learner(
    pieces: Pieces, *, loaded: LoadedModel | None = None, kind: type[Learner] = Learner
) -> tuple[Learner, LoraPlan]:
    """A fresh learner, and what got LoRA; the same weights for the same seed. `loaded` is used up."""
    loaded = loaded or pieces.load_model()
    back_end = pieces.back_end(loaded)
    plan = lora_plan(pieces, back_end, loaded)
    put_lora(pieces, back_end, plan)
    back_end.to(pieces.device)
    speed_up(
        back_end,
        gradient_checkpointing=pieces.settings.gradient_checkpointing,
        compile_blocks=pieces.settings.compile,
    )
    return learner_of(pieces, back_end, kind=kind), plan


def lora_plan(pieces: Pieces, back_end: Segment, loaded: LoadedModel) -> LoraPlan:
    """What gets LoRA; raises as `plan_lora` does."""
    settings = pieces.settings
    return plan_lora(
        back_end,
        targets=settings.lora_targets,
        rank=settings.lora_rank,
        alpha=settings.lora_alpha,
        dropout=settings.lora_dropout,
        new_modules=loaded.new_modules,
        layer_ranks=settings.layer_ranks(),
        rslora=settings.lora_rslora,
        dora=settings.lora_dora,
    )


def put_lora(pieces: Pieces, back_end: Segment, plan: LoraPlan) -> None:
    """Wrap the back end's model with LoRA, drawn from the run's seed."""
    torch.manual_seed(pieces.settings.seed)
    attach_lora(back_end, plan, task=pieces.bundle.manifest.task.task, seed=pieces.settings.seed)


def learner_of(pieces: Pieces, back_end: Segment, *, kind: type[Learner] = Learner) -> Learner:
    """A learner of a back end that carries LoRA."""
    settings = pieces.settings
    return kind(
        back_end,
        learning_rate=settings.learning_rate,
        head_learning_rate=settings.head_learning_rate,
        weight_decay=settings.weight_decay,
        micro_batch_tokens=settings.micro_batch_tokens,
    )
