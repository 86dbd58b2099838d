"""What a device says of itself: versions are those that the packages' metadata have, read by name only."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata

import pytest

from edge_runtime import profile


@pytest.mark.parametrize(
    "package", ["fedless", "numpy", "ai-edge-litert", "paho-mqtt", "PyYAML", "typing_extensions"]
)
def test_a_version_is_the_one_that_the_metadata_has(package: str) -> None:
    assert profile._version(package) == metadata.version(package)
    assert profile._version(package + "-that-nobody-has") == ""


def test_asking_costs_no_import_of_the_metadata_library() -> None:
    code = "from edge_runtime import profile; import sys; assert profile.version(); sys.exit('email' in sys.modules)"
    start = [sys.executable, "-S", "-c", f"import sys; sys.path[:] = {sys.path!r}; {code}"]
    assert subprocess.run(start, check=False).returncode == 0
