"""What comparisons of trainings share: samples, who holds them, runs of the trainer, a centralised control, judging."""
