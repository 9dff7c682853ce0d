"""Where do models come from? Loaded from a folder, or made on the spot; knows no strategy, no engine."""
