"""The entry of containers that are called with a POST: `python -m cloud_adapters.handlers.server`; see `listening`."""

from __future__ import annotations

from cloud_adapters.handlers.function import run
from cloud_adapters.handlers.listening import listen
from fedless.protocol.cloud import PAYLOAD_BYTES_MAX


def main() -> None:
    """Serve until SIGTERM."""
    listen(run, PAYLOAD_BYTES_MAX)


if __name__ == "__main__":
    main()
