"""How often each route was asked and with what result, for `Metrics`."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prometheus_client import Metric


class RequestCounts:
    """Counts requests; a collector of prometheus-client, for any number of threads."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, int]] = Counter()
        self._counting = threading.Lock()

    def add(self, route: str | None, status: int) -> None:
        """One more; the route as it is written down, not as it was asked."""
        with self._counting:
            self._counts[route or "none", status] += 1

    def collect(self) -> Iterator[Metric]:
        """See prometheus-client."""
        from prometheus_client.core import CounterMetricFamily

        found = CounterMetricFamily("m2df_requests", "Requests that were answered.", labels=["route", "status"])
        with self._counting:
            for (route, status), count in sorted(self._counts.items()):
                found.add_metric([route, str(status)], count)
        yield found
