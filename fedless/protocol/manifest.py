"""*Pure.* The manifest of a function: what `function.toml` may say, read and written.

The author's workstation writes it (`dump`), the edge runtime and the aggregator read it (`parse`). Every
range is checked here, once, and a manifest with several mistakes is refused with all of them in one error.
The layout of the parameter vector is part of it: tensors lie in the flat float32 vector one after another,
without a gap.

Rules: TOML 1.0 text, unknown keys are mistakes, every number has a range, every size a unit in its name.
"""

from __future__ import annotations

import math
import re
import tomllib
from dataclasses import asdict, dataclass, field

from fedless.protocol.errors import Code, PeerError
from fedless.protocol.tables import Table, write_tables

FORMAT = 1
"""The only layout of `function.toml` that exists so far."""
RUNTIME = 1
"""The contract with functions that this code implements (signatures, entries, providers)."""
MANIFEST_FILE = "function.toml"
GRAPH_FILE = "model.tflite"
PROVIDER_FILE = "provider.py"
INITIAL_FILE = "initial.f32"
"""Names of a function's files. The initial weights (raw little-endian float32) are not in the bundle."""
MAX_MANIFEST_BYTES = 1 << 20
MAX_PARAMETERS = 1 << 28
MAX_BATCH = 4096
MAX_DIMENSION = 1 << 24
NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?")
TENSOR_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]{0,127}")
INPUT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
ENTRY = re.compile(
    r"fedless:train|[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*:[A-Za-z_][A-Za-z0-9_]*"
)
DIGEST = re.compile(r"[0-9a-f]{64}")
MOUNT = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
TEXT = re.compile(r"[^\x00-\x1f\x7f]{0,200}")
RESERVED_INPUTS = frozenset({"params", "weight", "state", "lr"})
BUILTIN_ENTRY = "fedless:train"


@dataclass(frozen=True)
class Tensor:
    """One named tensor inside the flat parameter vector; `offset` counts elements, not bytes."""

    name: str
    shape: tuple[int, ...]
    offset: int
    dtype: str = "float32"

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Input:
    """One input of the graph: `shape` is that of one example, without the batch.

    `minimum` and `maximum` bound the values (both or none). Images that are stored as uint8 are mapped
    linearly from 0..255 onto that range.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    minimum: float | None = None
    maximum: float | None = None


@dataclass(frozen=True)
class Label:
    """One label of the graph: `shape` of one example; `classes` > 0 means integers in 0..classes-1."""

    name: str
    shape: tuple[int, ...] = ()
    dtype: str = "int32"
    classes: int = 0


@dataclass(frozen=True)
class Randomness:
    """An input of `grad` that the client fills with random numbers: a dropout mask.

    float32, `shape` per example; each element is 1/`keep` with probability `keep`, else 0.
    """

    name: str
    shape: tuple[int, ...]
    keep: float


@dataclass(frozen=True)
class Model:
    """What the .tflite computes: flat float32[`parameters`], static batch of `batch` examples."""

    parameters: int
    batch: int
    loss: str
    initial_sha256: str
    tensors: tuple[Tensor, ...]
    inputs: tuple[Input, ...]
    labels: tuple[Label, ...]
    metrics: tuple[str, ...] = ()
    randomness: tuple[Randomness, ...] = ()


@dataclass(frozen=True)
class Check:
    """The author's check record: what was run before the bundle was signed."""

    tensorflow: str
    runtime: str
    gradient_error: float
    model_bytes: int
    peak_memory_mb: int


@dataclass(frozen=True)
class Manifest:
    """A whole `function.toml`. `model` is None for a function that trains nothing."""

    name: str
    version: int
    entry: str = BUILTIN_ENTRY
    runtime_min: int = RUNTIME
    runtime_max: int = RUNTIME
    memory_mb: int = 512
    timeout_ms: int = 600_000
    network: bool = False
    data_mounts: tuple[str, ...] = ()
    licence: str = ""
    model: Model | None = None
    check: Check | None = None
    format: int = field(default=FORMAT)


def parse(text: str) -> Manifest:
    """The manifest that `text` says.

    Raises `PeerError(MANIFEST_INVALID)` whose detail names every mistake.
    """
    try:
        root = Table.root(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise PeerError(Code.MANIFEST_INVALID, f"function.toml is not TOML: {error}.") from None
    format_ = root.integer("format", FORMAT, FORMAT)
    function, model, check = root.table("function"), root.optional("model"), root.optional("check")
    manifest = _function(
        function, format_, _model(model) if model else None, _check_record(check) if check else None
    )
    complaints = root.close()
    if manifest.runtime_min > manifest.runtime_max:
        complaints.append("function.runtime_min is above function.runtime_max")
    if manifest.entry == BUILTIN_ENTRY and model is None:
        complaints.append(f'function.entry = "{BUILTIN_ENTRY}" needs a [model] table')
    if manifest.model is not None and not complaints:
        complaints.extend(_consistency(manifest.model))
    if complaints:
        raise PeerError(
            Code.MANIFEST_INVALID,
            "function.toml: " + "; ".join(complaints) + ".",
            fix="Build the function again with `fedless function build`.",
        )
    return manifest


def parse_bytes(data: bytes) -> Manifest:
    """`parse` of UTF-8 `data` of at most `MAX_MANIFEST_BYTES`; the same error otherwise."""
    if len(data) > MAX_MANIFEST_BYTES:
        raise PeerError(
            Code.MANIFEST_INVALID, f"function.toml has {len(data)} bytes; at most {MAX_MANIFEST_BYTES}."
        )
    try:
        return parse(data.decode())
    except UnicodeDecodeError as error:
        raise PeerError(Code.MANIFEST_INVALID, f"function.toml is not UTF-8: {error.reason}.") from None


def dump(manifest: Manifest) -> str:
    """The text of `manifest`, always the same for the same manifest; `parse(dump(m)) == m`."""
    values = asdict(manifest)
    tables: dict[str, object] = {"format": values.pop("format")}
    model, check = values.pop("model"), values.pop("check")
    return write_tables(tables | {"function": values, "model": model, "check": check})


def _function(table: Table, format_: int, model: Model | None, check: Check | None) -> Manifest:
    return Manifest(
        name=table.text("name", NAME),
        version=table.integer("version", 1, 2**31 - 1),
        entry=table.text("entry", ENTRY, BUILTIN_ENTRY),
        runtime_min=table.integer("runtime_min", 1, 10_000, RUNTIME),
        runtime_max=table.integer("runtime_max", 1, 10_000, RUNTIME),
        memory_mb=table.integer("memory_mb", 16, 65_536, 512),
        timeout_ms=table.integer("timeout_ms", 100, 86_400_000, 600_000),
        network=table.flag("network", default=False),
        data_mounts=table.texts("data_mounts", MOUNT, 16),
        licence=table.text("licence", TEXT, ""),
        model=model,
        check=check,
        format=format_,
    )


def _model(table: Table) -> Model:
    return Model(
        parameters=table.integer("parameters", 1, MAX_PARAMETERS),
        batch=table.integer("batch", 1, MAX_BATCH),
        loss=table.text("loss", INPUT_NAME),
        initial_sha256=table.text("initial_sha256", DIGEST),
        tensors=tuple(_tensor(item) for item in table.tables("tensors", 1, 10_000)),
        inputs=tuple(_input(item) for item in table.tables("inputs", 1, 16)),
        labels=tuple(_label(item) for item in table.tables("labels", 0, 16)),
        metrics=table.texts("metrics", INPUT_NAME, 16),
        randomness=tuple(_randomness(item) for item in table.tables("randomness", 0, 64)),
    )


def _tensor(table: Table) -> Tensor:
    return Tensor(
        name=table.text("name", TENSOR_NAME),
        shape=table.shape("shape", 4, MAX_DIMENSION),
        offset=table.integer("offset", 0, MAX_PARAMETERS),
        dtype=table.choice("dtype", ("float32",)),
    )


def _input(table: Table) -> Input:
    name = table.text("name", INPUT_NAME)
    shape = table.shape("shape", 3, MAX_DIMENSION)
    dtype = table.choice("dtype", ("float32", "int32"))
    minimum, maximum = table.bounds("minimum", "maximum")
    return Input(name, shape, dtype, minimum, maximum)


def _label(table: Table) -> Label:
    return Label(
        name=table.text("name", INPUT_NAME),
        shape=table.shape("shape", 3, MAX_DIMENSION),
        dtype=table.choice("dtype", ("int32", "float32")),
        classes=table.integer("classes", 0, 1_000_000, 0),
    )


def _randomness(table: Table) -> Randomness:
    return Randomness(
        name=table.text("name", INPUT_NAME),
        shape=table.shape("shape", 3, MAX_DIMENSION),
        keep=table.real("keep", 1e-6, 1.0),
    )


def _check_record(table: Table) -> Check:
    return Check(
        tensorflow=table.text("tensorflow", TEXT),
        runtime=table.text("runtime", TEXT),
        gradient_error=table.real("gradient_error", 0.0, 1.0),
        model_bytes=table.integer("model_bytes", 1, 2**31 - 1),
        peak_memory_mb=table.integer("peak_memory_mb", 0, 1_000_000),
    )


def _consistency(model: Model) -> list[str]:
    """Mistakes that are only visible across fields: gaps in the vector, names that occur twice."""
    complaints: list[str] = []
    end = 0
    for tensor in model.tensors:
        if tensor.offset != end:
            complaints.append(
                f"tensor {tensor.name} begins at {tensor.offset}, but the one before it ends at {end}"
            )
        end = tensor.offset + tensor.size
    if end != model.parameters:
        complaints.append(f"the tensors have {end} elements, but model.parameters is {model.parameters}")
    specs: list[Input | Label | Randomness] = [*model.inputs, *model.labels, *model.randomness]
    names = [item.name for item in specs]
    complaints.extend(_repeated("input, label or randomness", names))
    complaints.extend(_repeated("tensor", [tensor.name for tensor in model.tensors]))
    complaints.extend(_repeated("metric", [*model.metrics, "loss_sum"]))
    complaints.extend(f"the input name {name} is reserved" for name in names if name in RESERVED_INPUTS)
    complaints.extend(
        f"label {label.name} has classes, so its dtype must be int32"
        for label in model.labels
        if label.classes and label.dtype != "int32"
    )
    return complaints


def _repeated(what: str, names: list[str]) -> list[str]:
    return [f"the {what} name {name} occurs twice" for name in sorted(set(names)) if names.count(name) > 1]
