"""Providers: where data is found, and what is said when it cannot be read."""

from __future__ import annotations

import gzip
import struct
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_runtime.data import Dataset, DataSource, open_dataset
from fedless.protocol.errors import Code, FedlessError, LocalError
from fedless.protocol.manifest import Input, Label, Model, Tensor


def model(*inputs: Input, label: Label | None = None) -> Model:
    return Model(
        parameters=1,
        batch=4,
        loss="mse",
        initial_sha256="00" * 32,
        tensors=(Tensor("w", (1,), 0),),
        inputs=inputs or (Input("x", (2, 2, 1), "float32", 0.0, 1.0),),
        labels=(label or Label("y", (), "int32", 3),),
    )


TABLE = model(Input("x", (3,)), label=Label("kind", (), "int32", 2))


def batch(dataset: Dataset, described: Model, indices: list[int]) -> dict[str, NDArray[Any]]:
    specs: list[Input | Label] = [*described.inputs, *described.labels]
    into = {spec.name: np.full((described.batch, *spec.shape), 9, spec.dtype) for spec in specs}
    dataset.fill(np.array(indices), into)
    return into


def opened(described: Model, directory: Path = Path(), *, labels: bool = True, **source: object) -> Dataset:
    return open_dataset(DataSource.parse(source), described, str(directory), labels=labels)


def opening_fails(described: Model, directory: Path = Path(), **source: Any) -> FedlessError:
    with pytest.raises(FedlessError) as caught:
        opened(described, directory, **source)
    return caught.value


# -- where the data lies


def test_the_kind_follows_from_the_suffix() -> None:
    kinds = [DataSource.parse({"path": path}).kind for path in ("a.npz", "a.CSV", "a.parquet", "folder")]
    assert kinds == ["npz", "csv", "parquet", "images"]


def test_all_mistakes_in_the_source_are_reported() -> None:
    with pytest.raises(LocalError) as caught:
        DataSource.parse({"kind": "oracle", "columns": {"x": 5}, "classes": [1], "pfad": "a"})
    assert caught.value.code is Code.CONFIG_INVALID
    for expected in (
        "unknown key pfad",
        "path must be",
        "kind must be",
        "columns must be",
        "classes must be",
    ):
        assert expected in str(caught.value)


@pytest.mark.parametrize("kind", ["npz", "csv", "idx", "images"])
def test_missing_path_is_refused(tmp_path: Path, kind: str) -> None:
    error = opening_fails(model(), kind=kind, path=str(tmp_path / "absent"))
    assert error.code is Code.DATA_MISSING
    assert "absent" in str(error)


# -- npz


def test_npz_under_other_names(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((5, 2, 2), np.uint8), y=np.zeros(5, int))
    assert opened(model(), path=str(tmp_path / "a.npz"), columns={"x": "images"}).count == 5


def test_npz_with_pickled_objects_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.array([object()], object), y=np.zeros(1))
    assert opening_fails(model(), path=str(tmp_path / "a.npz")).code is Code.DATA_UNREADABLE


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04broken", b"text"])
def test_damaged_npz_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    assert opening_fails(model(), path=str(tmp_path / "a.npz")).code is Code.DATA_UNREADABLE


# -- idx


def idx(array: NDArray[Any]) -> bytes:
    return (
        struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()
    )


def test_idx_plain_and_zipped(tmp_path: Path) -> None:
    x = np.arange(20).reshape(5, 2, 2)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(x))
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.array([0, 1, 2, 1, 0]))))
    filled = batch(opened(model(), kind="idx", path=str(tmp_path)), model(), [1])
    np.testing.assert_allclose(filled["x"][0].ravel() * 255, [4, 5, 6, 7], atol=1e-4)
    assert filled["y"][0] == 1


@pytest.mark.parametrize(
    "content",
    [b"", b"\0\0\x08", b"\1\0\x08\1\0\0\0\1x", idx(np.zeros((5, 2, 2)))[:-1], idx(np.zeros(3)) + b"x"],
)
def test_damaged_idx_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "train-images-idx3-ubyte").write_bytes(content)
    error = opening_fails(model(), kind="idx", path=str(tmp_path))
    assert error.code is Code.DATA_UNREADABLE


def test_idx_that_is_no_gzip_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(b"no gzip")
    assert opening_fails(model(), kind="idx", path=str(tmp_path)).code is Code.DATA_UNREADABLE


# -- csv and parquet


def write_csv(tmp_path: Path, text: str) -> str:
    (tmp_path / "a.csv").write_text(text, encoding="utf-8")
    return str(tmp_path / "a.csv")


def test_csv_with_class_names(tmp_path: Path) -> None:
    path = write_csv(tmp_path, "a, b,kind,c\n1,2,cat,3\n4,5,dog,6\n")
    filled = batch(opened(TABLE, path=path, classes=["dog", "cat"]), TABLE, [0, 1])
    np.testing.assert_array_equal(filled["x"][:2], [[1, 2, 3], [4, 5, 6]])
    np.testing.assert_array_equal(filled["kind"][:2], [1, 0])


def test_csv_with_chosen_columns(tmp_path: Path) -> None:
    path = write_csv(tmp_path, "id,a,b,c,label\n7,1,2,3,0\n8,4,5,6,1\n")
    filled = batch(opened(TABLE, path=path, columns={"x": ["c", "a", "b"], "kind": "label"}), TABLE, [1])
    np.testing.assert_array_equal(filled["x"][0], [6, 4, 5])


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        ("a,b,kind,c\n1,2,0\n", Code.DATA_UNREADABLE, "line 2: 3 fields"),
        ("a,b,kind,c\n1,2,0,\n", Code.DATA_DTYPE, "line 2, x"),
        ("a,b,kind,c\n1,nan,0,3\n", Code.DATA_NOT_FINITE, "x holds NaN"),
        ("a,b,kind,c\n1,2,5,3\n", Code.DATA_RANGE, "kind must lie in 0..1"),
        ("a,b,c\n1,2,3\n", Code.DATA_MISSING, "no column kind"),
        ("a,kind,c\n1,0,3\n", Code.DATA_SHAPE, "3 elements, but 2 column"),
        ("a,b,kind,c\n", Code.DATA_EMPTY, "no examples"),
        ("", Code.DATA_SHAPE, "0 column"),
    ],
)
def test_csv_that_does_not_fit_is_refused(tmp_path: Path, text: str, code: Code, says: str) -> None:
    error = opening_fails(TABLE, path=write_csv(tmp_path, text))
    assert (error.code, says in str(error)) == (code, True), str(error)


def test_csv_class_that_is_unknown_is_refused(tmp_path: Path) -> None:
    error = opening_fails(TABLE, path=write_csv(tmp_path, "a,b,kind,c\n1,2,owl,3\n"), classes=["cat"])
    assert error.code is Code.DATA_RANGE
    assert "owl" in str(error)


def test_csv_that_is_binary_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe\x00")
    assert opening_fails(TABLE, path=str(tmp_path / "a.csv")).code is Code.DATA_UNREADABLE


def test_a_large_csv_costs_its_numbers_and_not_its_text(tmp_path: Path) -> None:
    line = ",".join(["0.123456"] * 100) + ",1\n"
    (tmp_path / "a.csv").write_text(",".join(f"c{n}" for n in range(100)) + ",kind\n" + line * 5000)
    wide = model(Input("x", (100,)), label=Label("kind", (), "int32", 2))
    tracemalloc.start()
    opened(wide, path=str(tmp_path / "a.csv"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * 5000 * 100 * 4


def test_parquet_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="the extra `parquet` is not installed")
    import pyarrow.parquet as pq

    path = str(tmp_path / "a.parquet")
    pq.write_table(pa.table({"a": ["1", "x"], "b": [1, 2], "c": [1, 2], "kind": [0, 1]}), path)
    assert opening_fails(TABLE, path=path).code is Code.DATA_DTYPE
    pq.write_table(pa.table({"a": [1.0, None], "b": [1, 2], "c": [1, 2], "kind": [0, 1]}), path)
    assert opening_fails(TABLE, path=path).code is Code.DATA_NOT_FINITE
    pq.write_table(pa.table({"a": [1], "b": [1], "c": [1]}), path)
    assert opening_fails(TABLE, path=path).code is Code.DATA_MISSING
    (tmp_path / "a.parquet").write_bytes(b"PAR1 not really")
    assert opening_fails(TABLE, path=path).code is Code.DATA_UNREADABLE


def test_parquet_reads_as_csv_does(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="the extra `parquet` is not installed")
    import pyarrow.parquet as pq

    table = pa.table({"a": [1.0, 4.0], "b": [2.0, 5.0], "c": [3, 6], "kind": ["cat", "dog"]})
    pq.write_table(table, tmp_path / "a.parquet")
    filled = batch(opened(TABLE, path=str(tmp_path / "a.parquet"), classes=["dog", "cat"]), TABLE, [0, 1])
    np.testing.assert_array_equal(filled["x"][:2], [[1, 2, 3], [4, 5, 6]])
    np.testing.assert_array_equal(filled["kind"][:2], [1, 0])


@pytest.mark.parametrize(("kind", "module"), [("parquet", "pyarrow"), ("images", "PIL")])
def test_missing_extra_is_named(
    tmp_path: Path, kind: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "a.png").write_bytes(b"x")
    error = opening_fails(model(), kind=kind, path=str(tmp_path))
    assert error.code is Code.NOT_INSTALLED
    assert f"fedless[{kind}]" in str(error)


# -- images


def write_image(path: Path, pixels: NDArray[Any]) -> None:
    image = pytest.importorskip("PIL.Image", reason="the extra `images` is not installed")
    path.parent.mkdir(exist_ok=True)
    image.fromarray(pixels.astype(np.uint8)).save(path)


def test_a_folder_per_class(tmp_path: Path) -> None:
    write_image(tmp_path / "cat" / "1.png", np.array([[0, 255], [255, 0]]))
    write_image(tmp_path / "owl" / "1.png", np.array([[255, 255], [255, 255]]))
    (tmp_path / "owl" / "notes.txt").write_text("no image")
    filled = batch(opened(model(), path=str(tmp_path), classes=["ape", "cat", "owl"]), model(), [0, 1])
    np.testing.assert_array_equal(filled["y"][:2], [1, 2])
    np.testing.assert_allclose(filled["x"][0].ravel(), [0, 1, 1, 0], atol=1e-6)


def test_images_without_labels_may_lie_in_the_folder_itself(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", np.zeros((2, 2)))
    assert opened(model(), path=str(tmp_path), labels=False).count == 1


def test_image_of_another_size_is_refused(tmp_path: Path) -> None:
    write_image(tmp_path / "0" / "1.png", np.zeros((3, 2)))
    error = opening_fails(model(), path=str(tmp_path))
    assert error.code is Code.DATA_SHAPE
    assert "is 2 x 3; the model needs 2 x 2" in str(error)


def test_image_that_is_damaged_is_refused(tmp_path: Path) -> None:
    write_image(tmp_path / "0" / "1.png", np.zeros((2, 2)))
    (tmp_path / "0" / "2.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    assert opening_fails(model(), path=str(tmp_path)).code is Code.DATA_UNREADABLE


def test_folder_that_is_no_class_is_refused(tmp_path: Path) -> None:
    write_image(tmp_path / "dog" / "1.png", np.zeros((2, 2)))
    assert opening_fails(model(), path=str(tmp_path), classes=["cat"]).code is Code.DATA_RANGE


def test_folder_without_images_is_refused(tmp_path: Path) -> None:
    assert opening_fails(model(), path=str(tmp_path)).code is Code.DATA_EMPTY


def test_images_for_a_model_without_images_are_refused(tmp_path: Path) -> None:
    described = model(Input("a", (2,)), Input("b", (2,)))
    assert opening_fails(described, path=str(tmp_path)).code is Code.DATA_SHAPE


# -- the author's own


def provider(tmp_path: Path, code: str) -> Path:
    (tmp_path / "provider.py").write_text(code)
    return tmp_path


def test_the_authors_provider_gets_path_and_options(tmp_path: Path) -> None:
    code = (
        "import numpy as np\n"
        "def load(path, options):\n"
        "    assert path == 'sensor-7'\n"
        "    n = options['n']\n"
        "    return {'x': np.zeros((n, 2, 2, 1)), 'y': np.ones(n, int)}\n"
    )
    assert opened(model(), provider(tmp_path, code), kind="own", path="sensor-7", options={"n": 3}).count == 3


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("def load(path, options): raise KeyError('serial')", Code.DATA_UNREADABLE),
        ("def load(path, options): return open('/nonexistent/file')", Code.DATA_MISSING),
        ("def load(path, options): return [1, 2]", Code.INSTANCE_BAD_RESULT),
        ("def load(path, options): return {'x': 'abc', 'y': [1]}", Code.DATA_EMPTY),
        ("def load(path, options): return {}", Code.DATA_MISSING),
        ("load = 5", Code.INSTANCE_FAILED),
    ],
)
def test_a_provider_that_misbehaves_is_refused(tmp_path: Path, code: str, expected: Code) -> None:
    assert opening_fails(model(), provider(tmp_path, code), kind="own", path="x").code is expected


def test_a_bundle_without_a_provider_is_refused(tmp_path: Path) -> None:
    assert opening_fails(model(), tmp_path, kind="own", path="x").code is Code.INSTANCE_FAILED
