"""vLLM as an inference engine of LightRFT, on every rank of its group."""
