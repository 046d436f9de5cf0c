"""sf-server: ingest, store, LoRA training, evaluation, publishing."""
