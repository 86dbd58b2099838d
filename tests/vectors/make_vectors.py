"""Writes the test vectors beside it: `python -m tests.vectors.make_vectors [directory]`. Same bytes every time."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.vectors.bad import bad_helper, bad_rosters, bad_rounds
from tests.vectors.calls import bad_calls, call_vectors
from tests.vectors.helper_mode import helper_vectors
from tests.vectors.jsonable import to_json
from tests.vectors.pairwise import pairwise
from tests.vectors.parts import primitives, ring_vectors, shamir_vectors
from tests.vectors.trust import trust_vectors

HERE = Path(__file__).parent
FILES: dict[str, Callable[[], Any]] = {
    "primitives.json": primitives,
    "shamir.json": shamir_vectors,
    "ring.json": ring_vectors,
    "pairwise.json": pairwise,
    "helper.json": helper_vectors,
    "bad_pairwise.json": lambda: [*bad_rosters(), *bad_rounds()],
    "bad_helper.json": bad_helper,
    "calls.json": call_vectors,
    "bad_calls.json": bad_calls,
    "trust.json": trust_vectors,
}


def render(name: str) -> str:
    """The text of one file."""
    return json.dumps(to_json(FILES[name]()), indent=1) + "\n"


def main(directory: Path) -> None:
    """Write all files into `directory`."""
    for name in FILES:
        (directory / name).write_text(render(name))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
