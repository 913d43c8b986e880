"""Data: episodes, generated clips, features."""
