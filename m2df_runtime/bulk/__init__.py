"""Many clips at once: read by processes or by a cluster, answered into a file that a later run goes on with."""
