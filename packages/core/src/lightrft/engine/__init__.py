"""Inference engines: the contract, the reference engine, and the controller that a strategy composes."""
