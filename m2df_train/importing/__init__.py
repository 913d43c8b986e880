"""Import of checkpoints of the two public repositories."""
