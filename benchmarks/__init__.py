"""Measurements: run each as `python -m benchmarks.<name>`; README.md says what they show."""
