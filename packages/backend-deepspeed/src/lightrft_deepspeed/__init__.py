"""DeepSpeed ZeRO as a training backend of LightRFT; found through the entry point `plugin`."""
