"""fedless: federated learning for functions on edge devices and in clouds."""

__version__ = "0.1.0"
