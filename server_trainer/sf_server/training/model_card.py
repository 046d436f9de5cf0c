"""README.md of a published adapter: what it was trained on, how, what it cost, how good it is, and how to use it."""

from __future__ import annotations

import os
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

import msgspec

from sf_contract import SOFTWARE
from sf_contract.bundle import Bundle
from sf_contract.manifest import Task
from sf_contract.messages import Role
from sf_server.pieces import Pieces
from sf_server.store.store import Store
from sf_server.training.checkpoints import Progress
from sf_server.training.lora_record import LoraRecord, describe_lora
from sf_server.training.validation import Score

SCORES_BEGIN: Final = "<!-- scores of sf-server eval -->"
SCORES_END: Final = "<!-- end of scores -->"
LAST_STEPS: Final = 50
"""The training loss is the mean of so many last steps."""

_CLASSES: Final = {
    Task.TEXT_CLASSIFICATION: "AutoModelForSequenceClassification",
    Task.CAUSAL_LM: "AutoModelForCausalLM",
}
_LIBRARIES: Final = ("torch", "transformers", "peft", "safetensors")
_DEVICES_SHOWN: Final = 100
_TAIL_BYTES: Final = 256 * 1024


def model_card(pieces: Pieces, progress: Progress, score: Score | None) -> str:
    """Markdown with the metadata block that the Hugging Face hub reads; of the data it holds counts only."""
    base = pieces.bundle.manifest.base_model
    held_out = "none were held out" if score is None else score.one_line()
    sections = [
        _beginning(pieces),
        f"# LoRA adapter for {base.name}",
        _about(pieces),
        "## Training",
        _table(_training(pieces, progress)),
        "## Data",
        _data(pieces),
        "## Front ends on the devices",
        _front_ends(pieces.bundles),
        "## Scores",
        f"Samples that the devices held out, through their own front ends: {held_out}.",
        with_scores(
            "", "On a file, with the devices' front ends and the fp32 one: `sf-server eval --data FILE --card`."
        ).strip(),
        "## Use",
        _use(pieces),
        "## Privacy",
        _PRIVACY,
        "## Intended use and limits",
        "To be written by whoever publishes this adapter: what it is for, whom it serves, what it must not decide. The license "
        "is that of the base model unless they say otherwise.",
    ]
    return "\n\n".join(sections) + "\n"


def with_scores(card: str, table: str) -> str:
    """A card with another table of scores; one that has lost its place for them gets it at its end."""
    before, begins, rest = card.partition(SCORES_BEGIN)
    _, ends, after = rest.partition(SCORES_END)
    if not begins or not ends:
        before, after = card.rstrip("\n") + "\n\n", "\n"
    return f"{before}{SCORES_BEGIN}\n{table}\n{SCORES_END}{after}"


_PRIVACY: Final = """\
The texts stayed on the devices. What the server received, activations and labels or completion tokens, is not anonymous:
whoever holds it and the base model can turn much of it back into text. An adapter can repeat what it was trained on. Delete
the run's store when it is not needed any more."""


def _beginning(pieces: Pieces) -> str:
    pipeline = "text-generation" if pieces.bundle.manifest.task.task is Task.CAUSAL_LM else "text-classification"
    return (
        f"---\nbase_model: {_where(pieces)}\nlibrary_name: peft\npipeline_tag: {pipeline}\n"
        "tags: [lora, split-learning, splitfrozen]\n---"
    )


def _about(pieces: Pieces) -> str:
    geometry = pieces.bundle.manifest.geometry
    cuts = ", ".join(str(bundle.manifest.geometry.split_layer) for bundle in pieces.bundles)
    return (
        f"Trained with {SOFTWARE}. Devices computed the frozen first layers of the base model on their own texts (cut {cuts} "
        f"of {geometry.layers} layers) and sent the activations; the server trained LoRA on layers {pieces.first_layer} to "
        f"{geometry.layers - 1}, counted from 0 in the whole model."
    )


def _training(pieces: Pieces, progress: Progress) -> dict[str, str]:
    settings, manifest = pieces.settings, pieces.bundle.manifest
    spec, base = manifest.task, manifest.base_model
    loss = _last_loss(pieces.folder.metrics_path)
    return {
        "base model": f"{base.name}, revision {base.revision or 'local'}, weights SHA-256 `{base.weights_sha256[:16]}`",
        "task": spec.task.value,
        "labels": ", ".join(spec.labels) or "none",
        "text template": f"`{spec.template.prompt!r}`",
        **({"completion template": f"`{spec.template.completion!r}`"} if spec.template.completion else {}),
        "longest text": f"{manifest.geometry.max_tokens} tokens",
        "LoRA": _lora(pieces),
        "learning rate": f"{settings.learning_rate:g}, head {settings.head_learning_rate:g}, AdamW, weight decay "
        f"{settings.weight_decay:g}, {settings.warmup_steps} steps of warm-up",
        "batches": f"at most {settings.batch_tokens} tokens or {settings.batch_samples} samples, seed {settings.seed}",
        "base weights in": f"{str(pieces.dtype).removeprefix('torch.')} on {pieces.device.type}",
        "epochs, steps, tokens": f"{settings.epochs}, {progress.step}, {progress.tokens:,}",
        "steps left out": f"{progress.skipped_steps} without a finite gradient",
        f"training loss, last {LAST_STEPS} steps": "not recorded" if loss is None else f"{loss:.4f} nats per target",
        "software": ", ".join([SOFTWARE, *_versions()]),
    }


def _lora(pieces: Pieces) -> str:
    """As it was resolved against the model and recorded, else as it was asked for."""
    try:
        return describe_lora(msgspec.json.decode(pieces.folder.lora_path.read_bytes(), type=LoraRecord))
    except (OSError, msgspec.DecodeError):
        return f"rank {pieces.settings.lora_rank}, alpha {pieces.settings.lora_alpha:g}"


def _data(pieces: Pieces) -> str:
    """Samples and tokens of each device; no text, no labels, and no names, which may be people's."""
    if not pieces.folder.store_path.is_file():
        return "The store of the run is not here."
    trained: Counter[str] = Counter()
    held_out: Counter[str] = Counter()
    tokens: Counter[str] = Counter()
    with Store.open_read_only(pieces.folder.store_path) as store:
        for role, counter in ((Role.TRAIN, trained), (Role.VALIDATION, held_out)):
            for info in store.sample_infos(role=role):
                counter[info.device] += 1
                tokens[info.device] += info.tokens if role is Role.TRAIN else 0
    devices = sorted({*trained, *held_out})
    rows = [
        (str(number), str(trained[name]), f"{tokens[name]:,}", str(held_out[name]))
        for number, name in enumerate(devices[:_DEVICES_SHOWN], start=1)
    ]
    rest = len(devices) - len(rows)
    total = ("all", str(trained.total()), f"{tokens.total():,}", str(held_out.total()))
    more = f"\n\n{rest} more devices are counted, but not listed." if rest else ""
    return _rows(("device", "samples", "tokens", "held out"), [*rows, total]) + more


def _front_ends(bundles: Sequence[Bundle]) -> str:
    rows = [
        (
            f"`{bundle.bundle_id[:16]}`",
            str(bundle.manifest.geometry.split_layer),
            bundle.manifest.quantization.requested,
            bundle.manifest.wire_codec.value,
            f"{bundle.manifest.quantization.error.mean:.2%}, {bundle.manifest.quantization.error.p99:.2%}",
        )
        for bundle in bundles
    ]
    return (
        _rows(("bundle", "cut", "quantization", "rows as", "error at the cut, mean and p99"), rows)
        + "\n\nThe error is that of the rows a device computes, relative to fp32, on the text the bundle was measured on."
    )


def _use(pieces: Pieces) -> str:
    spec, where = pieces.bundle.manifest.task, _where(pieces)
    options = f", num_labels={len(spec.labels)}" if spec.labels else ""
    kind = _CLASSES[spec.task]
    return f"""\
```python
from peft import PeftModel
from transformers import {kind}

base = {kind}.from_pretrained({where!r}{options})
model = PeftModel.from_pretrained(base, "this folder")
```

`sf-server merge --run RUN --out merged` writes one ordinary model folder, with tokenizer. Texts must be brought into the
form of the template above."""


def _where(pieces: Pieces) -> str:
    base = pieces.bundle.manifest.base_model
    return base.name if base.revision else str(pieces.checkpoint.folder)


def _versions() -> Iterable[str]:
    for name in _LIBRARIES:
        try:
            yield f"{name} {version(name)}"
        except PackageNotFoundError:
            continue


def _last_loss(metrics: Path) -> float | None:
    """Mean loss of the last steps that the run's metrics hold."""
    try:
        with metrics.open("rb") as stream:
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - _TAIL_BYTES))
            lines = stream.read().splitlines()
    except OSError:
        return None
    losses: list[float] = []
    for line in lines:
        try:
            entry = msgspec.json.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError):  # the first line of the tail may be cut off
            continue
        if isinstance(entry, dict) and entry.get("kind") == "step" and isinstance(entry.get("loss"), float):
            losses.append(entry["loss"])
    return statistics.fmean(losses[-LAST_STEPS:]) if losses else None


def _table(facts: Mapping[str, str]) -> str:
    return _rows(("", ""), list(facts.items()))


def _rows(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *([_cell(text) for text in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    """Labels and templates may hold what would end a cell."""
    return text.replace("|", "\\|").replace("\n", " ")
