"""Google: the real functions-framework. It verifies no token; the token itself comes from a local token endpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from tests.contract.peers.process import Peer, free_port, needed, start


def framework(folder: Path, deployed: Mapping[str, str], mode: str) -> Peer:
    tool = needed(".venv-clouds/bin/functions-framework")
    python = needed(".venv-clouds/bin/python")
    port = free_port()
    target = "fedless" if mode == "http" else "fedless_event"
    (folder / "main.py").write_text(f"from cloud_adapters.handlers.google import {target}\n")
    command = [
        python,
        tool,
        "--target",
        target,
        "--signature-type",
        mode,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    process = start(command, port, folder, {**deployed, "FEDLESS_TIMEOUT_S": "60"})
    settings = {
        "memory_mb": 1024,
        "timeout_s": 60,
        "url": f"http://127.0.0.1:{port}/",
        "mode": mode,
        "public": True,
    }
    return Peer("google", settings, [process], answers=mode == "http")


def key_file(folder: Path, token_uri: str) -> Path:
    """A service account's key as Google hands it out, with a token endpoint of our own."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(65537, 2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = folder / "account.json"
    path.write_text(json.dumps({
        "type": "service_account", "project_id": "p", "private_key_id": "1", "private_key": pem.decode(),
        "client_email": "fedless@p.iam.gserviceaccount.com", "client_id": "1", "token_uri": token_uri,
    }))  # fmt: skip
    return path
