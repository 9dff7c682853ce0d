"""For tests of SGLang on a CPU; see `hook`."""
