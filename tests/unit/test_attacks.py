"""docs/security.md names a test for each attack of the specification, and every test that it names is there."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "security.md").read_text()
SECTION = TEXT[TEXT.index("## 6. Attacks and their tests") :]
ROW = re.compile(r"^\| (.*) \| (`.*`) \|$", re.MULTILINE)
ROWS = {name: re.findall("`([^`]*)`", cell) for name, cell in ROW.findall(SECTION)}
# The specification's list (section 9), one line for each attack.
ATTACKS = (
    "replayed ticket",
    "expired ticket",
    "foreign ticket",
    "forged ticket",
    "claim used twice",
    "certificate of another fleet",
    "certificate of another role",
    "revoked certificate",
    "expired certificate",
    "device reads another device's wake topic",
    "repeated identical call",
    "repeated different call",
    "report under another client's id",
    "report twice",
    "truncated, over-long, corrupted upload",
    "example count out of range",
    "NaN and Inf",
    "model swapped for one client",
    "roster with a duplicated id or key",
    "roster with an unsigned key",
    "roster with an own entry that was changed",
    "roster with a threshold below policy",
    "cohort below the client's minimum",
    "slot used again",
    "same model summed twice",
    "own bit set by the aggregator for a member that did not report",
    "report re-masked after a crash",
    "journal restored from an old image",
    "new authority that the old one has not signed",
    "rollback to an older list of keys",
    "list of keys withheld, changed, or of another fleet",
    "helper key swapped by a renewal",
    "tickets by unknown keys to make a device call",
    "device named like a reserved identity",
    "both secrets of one peer asked (two bitmaps)",
    "bitmap with fewer than min_alive",
    "wrong share (located, survived)",
    "all-zero X25519 point",
    "box replayed from another epoch",
    "server restart between any two messages",
    "seed twice in one set",
    "helper key swapped",
    "same round closed twice with different sets",
    "set below the helper's minimum",
    "call to the helper replayed",
    "helper's reply forged or replayed",
    "personal parameters asked for",
    "overflow of the ring",
    "bundle with a path escape",
    "bundle with a link",
    "bundle with a huge file",
    "bundle of an unknown publisher",
    "bundle of an older version than the one seen",
    "round that would send a coordinate without noise",
    "noise multiplier lowered for one client",
    "privacy budget exceeded",
    "ledger lowered by a crash or a restored back-up",
    "secrets in repr, logs, errors",
)


@cache
def functions(file: Path) -> dict[str, ast.FunctionDef | ast.AsyncFunctionDef]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name: node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, kinds)}


def test_every_attack_has_its_row_and_no_other_row_is_there() -> None:
    assert list(ROWS) == list(ATTACKS)


@pytest.mark.parametrize("named", sorted({test for tests in ROWS.values() for test in tests}))
def test_named_test_exists_and_can_fail(named: str) -> None:
    file, _, name = named.partition("::")
    path = ROOT / "tests" / file
    assert path.is_file()
    assert name in functions(path), f"{file} has no {name}"
    body = ast.dump(functions(path)[name])
    assert "Assert(" in body or "raises" in body or "refus" in body, f"{name} asserts nothing"
    decorators = [ast.unparse(decorator) for decorator in functions(path)[name].decorator_list]
    assert not any(word in decorator for decorator in decorators for word in ("skip", "xfail"))
