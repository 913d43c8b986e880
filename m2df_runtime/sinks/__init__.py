"""Where events go besides standard output: files that are written while, or after, a recording is read."""
