"""`m2df-train` and `m2df-eval`."""
