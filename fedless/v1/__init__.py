"""Stubs generated from `proto/`; `make proto` regenerates them to the same bytes."""
