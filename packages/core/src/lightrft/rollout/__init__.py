"""The client of an inference engine: prompts gathered and answers scattered, sleep and wake, weight syncs."""
