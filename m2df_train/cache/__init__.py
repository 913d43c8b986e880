"""Features of clips, encoded once and kept."""
