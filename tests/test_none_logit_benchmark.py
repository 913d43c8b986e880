"""What the benchmark of the none logit compares, on scores whose areas are known."""

from __future__ import annotations

import numpy as np

from benchmarks.none_logit import compared


def test_a_lead_is_over_the_distance_of_the_same_queries() -> None:
    distances = np.tile([1.0, 4.0, 2.0, 3.0], (6, 1))  # two known queries, two unknown: half of the pairs are in order
    apart = np.tile([0.0, 0.0, 1.0, 1.0], (6, 1))
    assert compared([distances], distances) == {"auroc": 50.0, "leads_by": [0.0, 0.0, 0.0], "runs": [0.0, 0.0]}
    found = compared([apart, -apart, distances], distances)
    assert found == {"auroc": 50.0, "leads_by": [0.0, 0.0, 0.0], "runs": [-50.0, 50.0]}
    assert compared([apart], distances)["leads_by"] == [50.0, 50.0, 50.0]
