"""README.md of a published adapter: what it was trained on, how, and how to load it."""

from __future__ import annotations

from sf_contract import SOFTWARE
from sf_contract.manifest import Task
from sf_server.pieces import Pieces
from sf_server.training.checkpoints import Progress
from sf_server.training.validation import Score

_CLASSES = {
    Task.TEXT_CLASSIFICATION: "AutoModelForSequenceClassification",
    Task.CAUSAL_LM: "AutoModelForCausalLM",
}


def model_card(pieces: Pieces, progress: Progress, score: Score | None) -> str:
    """Markdown with the metadata block that the Hugging Face hub reads."""
    manifest = pieces.bundle.manifest
    base, spec = manifest.base_model, manifest.task
    where = base.name if base.revision else str(pieces.checkpoint.folder)
    options = f", num_labels={len(spec.labels)}" if spec.labels else ""
    settings = pieces.settings
    held_out = "none were held out" if score is None else score.one_line()
    labels = ", ".join(spec.labels) or "none (causal language modelling)"
    first, last = manifest.geometry.split_layer, manifest.geometry.layers - 1
    return f"""---
base_model: {where}
library_name: peft
tags: [lora, split-learning, splitfrozen]
---

# LoRA adapter for {base.name}

Trained with {SOFTWARE} on activations that devices computed with the frozen first {first} of
{manifest.geometry.layers} layers (bundle `{pieces.bundle.bundle_id[:16]}`); the texts stayed on the devices. Activations are
not anonymous: whoever holds them and the base model may be able to turn them back into text.

| | |
|---|---|
| task | {spec.task.value} |
| labels | {labels} |
| text template | `{spec.template.prompt}` |
| samples, epochs, steps | {progress.samples}, {settings.epochs}, {progress.step} |
| LoRA | rank {settings.lora_rank}, alpha {settings.lora_alpha:g}, layers {first}-{last} |
| learning rate | {settings.learning_rate:g} (head {settings.head_learning_rate:g}) |
| samples the devices held out | {held_out} |

```python
from peft import PeftModel
from transformers import {_CLASSES[spec.task]}

base = {_CLASSES[spec.task]}.from_pretrained({where!r}{options})
model = PeftModel.from_pretrained(base, "this folder")
```
"""
