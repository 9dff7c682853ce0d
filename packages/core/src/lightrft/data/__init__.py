"""Where do prompts come from, and in which order? Reading files, tokenizing prompts, the resumable sampler."""
