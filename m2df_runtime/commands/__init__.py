"""`m2df-run` and `m2df-doctor`, and what all commands share."""
