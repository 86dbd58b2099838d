"""OpenFaaS' entry: the container's own server, which the of-watchdog (mode http) forwards to."""

from __future__ import annotations

from fedless.helper.entries.server import main

if __name__ == "__main__":
    main()
