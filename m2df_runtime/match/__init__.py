"""From a query to its answer."""
