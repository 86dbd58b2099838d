"""The messages of recorded conversations: which method takes and gives what, and what has changed since."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from google.protobuf import message_factory
from google.protobuf.message import Message

from fedless.v1 import enrollment_pb2, fleet_pb2, rounds_pb2

CONVERSATIONS = sorted((Path(__file__).parent / "conversations").glob("*.json"))
EXACT = frozenset(
    {"admitted", "encoding", "report_bytes", "accepted", "complete", "offset", "fleet", "client_id"}
)
"""Fields of replies on which a device decides: a newer aggregator says the same."""


def load(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def data(text: str) -> bytes:
    return base64.b64decode(text)


def classes(method: str) -> tuple[type[Message], type[Message]]:
    """Of the request and the reply of `/fedless.v1.Service/Method`."""
    _, service, name = method.split("/", maxsplit=1)[0], *method.rpartition(".")[2].split("/")
    for module in (enrollment_pb2, fleet_pb2, rounds_pb2):
        found = module.DESCRIPTOR.services_by_name.get(service)
        if found is not None:
            taken = found.methods_by_name[name]
            return (
                message_factory.GetMessageClass(taken.input_type),
                message_factory.GetMessageClass(taken.output_type),
            )
    raise KeyError(method)


def calls(conversation: Mapping[str, Any]) -> Iterator[tuple[str, list[Message], list[Message]]]:
    """Each call with its requests and its replies, parsed by today's classes."""
    for event in conversation["events"]:
        if "call" in event:
            request, reply = classes(event["call"])
            sent = [request.FromString(data(each)) for each in event["sent"]]
            yield event["call"], sent, [reply.FromString(data(each)) for each in event["got"]]


def replaced(message: Message, values: Mapping[Any, Any]) -> Message:
    """The message with what belongs to one fleet only (ids, nonces, digests) exchanged for another's."""
    for field, value in message.ListFields():
        if isinstance(value, int | bytes | str) and value in values:
            setattr(message, field.name, values[value])
    return message


def lost(old: Message, new: Message, path: str = "") -> list[str]:
    """What an old reply said and a new one does not."""
    told = {field.name: value for field, value in new.ListFields()}
    found = []
    for field, value in old.ListFields():
        here, now = f"{path}/{field.name}", told.get(field.name)
        decides = field.name in EXACT and isinstance(value, bool | int | str)
        if now is None or (decides and now != value):
            found.append(f"{here}: was {value!r}, is {now!r}")
        elif isinstance(value, Message):
            found += lost(value, now, here)
    return found
