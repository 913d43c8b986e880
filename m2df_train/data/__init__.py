"""Labelled clips of folders, benchmarks and the generator: their splits, the episodes drawn of them, random changes."""
