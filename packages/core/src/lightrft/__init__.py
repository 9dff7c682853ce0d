"""LightRFT: reinforcement fine-tuning of language models as one SPMD program."""

__version__ = "0.1.0"
