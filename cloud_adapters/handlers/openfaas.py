"""OpenFaaS' entry: the container's own server, which the of-watchdog (mode http) forwards to.

The template python3-http is not used: it turns JSON into text through `str()`. Our server reads chunked bodies.
"""

from __future__ import annotations

from cloud_adapters.handlers.server import main

if __name__ == "__main__":
    main()
