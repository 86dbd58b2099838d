"""The aggregator: opens rounds, wakes the cohort, adds reports as they arrive, commits the new model."""
