"""Models: loaded from a folder or made on the spot, and their log-probs, values and adapters."""
