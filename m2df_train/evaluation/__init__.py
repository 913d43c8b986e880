"""Evaluation: models as scorers, episodes from features, comparison and tables."""
