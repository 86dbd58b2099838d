"""The present schema of the wire as plain data: `python -m tests.recordings.schema FILE` writes it (`make record`)."""

from __future__ import annotations

import importlib
import json
import pkgutil
import sys
from pathlib import Path
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor, FileDescriptor

import fedless.v1

_TYPES = {
    number: name[5:].lower() for name, number in vars(FieldDescriptor).items() if name.startswith("TYPE_")
}


def present() -> dict[str, Any]:
    """Services, messages and enums of fedless.v1."""
    schema: dict[str, Any] = {"services": {}, "messages": {}, "enums": {}}
    for module in sorted(item.name for item in pkgutil.iter_modules(fedless.v1.__path__)):
        if module.endswith("_pb2"):
            _add(schema, importlib.import_module(f"fedless.v1.{module}").DESCRIPTOR)
    return schema


def _add(schema: dict[str, Any], file: FileDescriptor) -> None:
    for service in file.services_by_name.values():
        schema["services"][service.name] = {
            method.name: {
                "takes": method.input_type.full_name, "takes_stream": method.client_streaming,
                "gives": method.output_type.full_name, "gives_stream": method.server_streaming,
            }
            for method in service.methods
        }  # fmt: skip
    for message in file.message_types_by_name.values():
        _add_message(schema, message)
    for enum in file.enum_types_by_name.values():
        schema["enums"][enum.name] = {value.name: value.number for value in enum.values}


def _add_message(schema: dict[str, Any], message: Descriptor) -> None:
    schema["messages"][message.full_name.removeprefix("fedless.v1.")] = {
        field.name: {
            "number": field.number, "type": _TYPES[field.type], "label": "repeated" if field.is_repeated else "one",
            "of": field.message_type.full_name if field.message_type else "",
        }
        for field in message.fields
    }  # fmt: skip
    for nested in message.nested_types:
        _add_message(schema, nested)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(present(), indent=1, sort_keys=True) + "\n")
