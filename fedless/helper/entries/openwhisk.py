"""Apache OpenWhisk's entry: `main` of the action's `__main__.py`; parameters and result are JSON objects.

The keys are bound to the action as a parameter. Whoever may invoke it could give others: with them it is another
helper, whose replies nobody takes, and the next call has the bound ones again.
"""

from __future__ import annotations

import os
from typing import Any

from fedless.helper.deployed import KEYS_VARIABLE
from fedless.helper.function import deployed, run


def main(arguments: dict[str, Any]) -> dict[str, Any]:
    """One activation."""
    keys = str(arguments.get(KEYS_VARIABLE, ""))
    if keys and keys != os.environ.get(KEYS_VARIABLE):
        os.environ[KEYS_VARIABLE] = keys
        deployed.cache_clear()
    return run({name: value for name, value in arguments.items() if name != KEYS_VARIABLE})
