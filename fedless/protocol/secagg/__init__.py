"""Secure aggregation as pure code: both modes of the protocol, every party."""
