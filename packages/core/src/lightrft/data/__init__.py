"""Prompts and their order: reading files, tokenizing prompts, the resumable sampler."""
