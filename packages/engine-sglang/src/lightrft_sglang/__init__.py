"""SGLang as an inference engine of LightRFT, on the first rank of its group."""
