"""docs/functions.md: its model builds, its provider reads, and no field or kind of data is left out."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from edge_runtime.data import DataSource
from edge_runtime.data.own import load
from edge_runtime.data.source import KINDS
from fedless.protocol import manifest

TEXT = Path("docs/functions.md").read_text(encoding="utf-8")
MODEL, PROVIDER = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.parametrize(
    "described",
    [
        manifest.Manifest,
        manifest.Model,
        manifest.Tensor,
        manifest.Input,
        manifest.Label,
        manifest.Randomness,
        manifest.Check,
    ],
)
def test_every_field_of_the_manifest_is_documented(described: type) -> None:
    assert dataclasses.is_dataclass(described)
    section = TEXT[TEXT.index("## function.toml") :]
    missing = [
        field.name
        for field in dataclasses.fields(described)
        if not re.search(rf"`(\w+\.)?{field.name}`", section) and field.name != "model"
    ]
    assert missing == []


def test_every_kind_of_data_and_every_key_is_documented() -> None:
    section = TEXT[TEXT.index("## Data on the device") : TEXT.index("## function.toml")]
    names = [*KINDS, *DataSource.__dataclass_fields__]
    assert [name for name in names if f"`{name}`" not in section] == []


def test_the_provider_reads(tmp_path: Path) -> None:
    (tmp_path / "provider.py").write_text(PROVIDER)
    (tmp_path / "meter.csv").write_text("1;2;0\n3;4;1\n")
    source = DataSource.parse({"kind": "own", "path": str(tmp_path / "meter.csv")})
    arrays = load(source, str(tmp_path))
    assert arrays["x"].tolist() == [[1, 2], [3, 4]]
    assert arrays["y"].tolist() == [0, 1]


@pytest.mark.tensorflow
def test_the_model_is_one_and_every_layer_is_documented(tmp_path: Path) -> None:
    from fedless.authoring import layers, recurrent
    from fedless.console.function import load_model

    (tmp_path / "model.py").write_text(MODEL)
    model = load_model(tmp_path / "model.py")
    assert (model.parameters, len(model.randomness)) == (80 + 13 * 13 * 8 * 10 + 10, 1)
    named = [
        name
        for module in (layers, recurrent)
        for name, found in vars(module).items()
        if isinstance(found, type) and issubclass(found, layers.Layer) and not name.startswith("_")
    ]
    assert [name for name in named if f"`{name}" not in TEXT and name != "Layer"] == []
    assert [name for name in layers.ACTIVATIONS if name not in TEXT] == []
