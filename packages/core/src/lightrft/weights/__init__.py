"""Weights on their way from actor to engine or file: buckets, names, checksums, staging, verification, merged adapters."""
