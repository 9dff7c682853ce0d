"""Plugins with one planted fault each, and the one test of the conformance kit that must fail of it."""
