"""Ranks, groups, collectives and weight buckets; knows no model, no engine, no strategy."""
