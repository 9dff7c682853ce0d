"""A strategy of LightRFT on torch's DistributedDataParallel."""
