"""For tests of engines on a CPU; see `hook`."""
