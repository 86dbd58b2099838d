"""The entry of containers that are called with a POST (Knative, Cloud Run, OpenFaaS behind its watchdog).

`python -m fedless.helper.entries.server`; see `cloud_adapters.handlers.listening`.
"""

from __future__ import annotations

from cloud_adapters.handlers.listening import listen
from fedless.helper.function import CALL_BYTES_MAX, run


def main() -> None:
    """Serve until SIGTERM."""
    listen(run, CALL_BYTES_MAX)


if __name__ == "__main__":
    main()
