"""Experiments: data sets and their partition, local fleets, runs and their reports."""
