"""Rewards: finding reward functions, calling them safely, and the built-in ones."""
