"""Ranks, groups, collectives, time limits and failures; knows no model, no engine, no strategy."""
