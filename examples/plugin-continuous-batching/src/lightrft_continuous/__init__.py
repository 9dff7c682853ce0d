"""An engine of LightRFT on transformers' continuous batching."""
