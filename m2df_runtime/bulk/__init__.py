"""Many clips at once: read by processes, answered into a file that a later run goes on with."""
