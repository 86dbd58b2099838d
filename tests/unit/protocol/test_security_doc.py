"""docs/security.md is a reference: it names every label, every field of every message, in order."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from fedless.protocol.crypto import Label
from fedless.protocol.secagg import calls, helper_messages, messages, state
from fedless.protocol.secagg.ring import Extra, RingEncoding

TEXT = (Path(__file__).parents[3] / "docs" / "security.md").read_text()
WIRE = TEXT[TEXT.index("### On the wire") :]
SENT = (
    messages.EpochKeys,
    messages.Roster,
    messages.EpochShares,
    messages.Inbox,
    messages.RoundOpen,
    RingEncoding,
    messages.MaskedReport,
    messages.UnmaskRequest,
    messages.UnmaskResponse,
    messages.RoundResult,
    state.Mark,
    helper_messages.HelperOpen,
    helper_messages.HelperReport,
    helper_messages.MaskSum,
    helper_messages.CloseRequest,
    calls.Call,
    calls.SignedCall,
    calls.Reply,
    calls.SignedReply,
)


@pytest.mark.parametrize("label", Label)
def test_every_label_is_documented(label: Label) -> None:
    assert f'"{label.value}"' in TEXT


@pytest.mark.parametrize("kind", SENT, ids=lambda kind: kind.__name__)
def test_every_field_on_the_wire_is_documented_in_order(kind: type) -> None:
    row = re.search(rf"^\| {kind.__name__} \| (.*) \|$", WIRE, re.MULTILINE)
    assert row is not None
    named = re.findall(r"[a-z][a-z0-9_]*", re.sub(r"\([^)]*\)|:.*", "", row[1]))
    assert named == [item.name for item in fields(kind)]


def test_inner_structures_are_documented() -> None:
    for kind in (messages.Box, Extra):
        assert f"{kind.__name__}: {', '.join(item.name for item in fields(kind))}" in TEXT
