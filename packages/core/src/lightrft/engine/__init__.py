"""The contract of inference engines, and the reference engine `hf`."""
