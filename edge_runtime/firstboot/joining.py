"""Joining the fleet, as the agent's user: the claim comes on standard input, one line of JSON goes out.

Started by `steps.join`. The line is `{"code": "", "detail": ...}` when all went well, else the error's code and words.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from edge_runtime.enroll import enroll
from fedless.protocol.errors import FedlessError


def main() -> int:
    """Enroll; the exit status is 0 whatever came of it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--again", action="store_true")
    given = parser.parse_args()
    told = {"code": "", "detail": ""}
    try:
        enroll(given.state, sys.stdin.read(), again=given.again)
    except FedlessError as error:
        told = {"code": error.code.value, "detail": error.detail}
    sys.stdout.write(json.dumps(told) + "\n")
    return 0
