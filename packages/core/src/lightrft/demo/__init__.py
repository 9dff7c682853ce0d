"""The demo: a task small enough to watch a model get better on a laptop."""
