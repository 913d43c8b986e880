"""Training: stages, tuning strategies, the loop over episodes and what a run writes."""
