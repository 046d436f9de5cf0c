"""`sf-bench training`: a training step and its feed, against the whole model in Hugging Face Trainer with PEFT."""
