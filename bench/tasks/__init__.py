"""What fine-tuning with few labels gives on real scenes, beside controls and baselines: ``python -m bench.tasks``."""
