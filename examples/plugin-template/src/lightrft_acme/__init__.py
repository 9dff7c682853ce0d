"""A plugin of LightRFT."""
