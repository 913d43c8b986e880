"""Answers for people to look at."""
