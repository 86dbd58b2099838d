"""The house's rules that no linter knows: sizes, names, words, purity, libraries' rooms, samples."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

from fedless.protocol.errors import MEANINGS, Code

ROOT = Path(__file__).parents[2]
PACKAGES = ("fedless", "aggregator", "edge_runtime", "cloud_adapters")
GENERATED = "fedless/v1/"
ODDS_AND_ENDS = {"utils", "util", "common", "helpers", "types", "manager", "misc"}
NAMED_BY_THE_DESIGN = {"aggregator/helpers.py"}  # the calling side of helper mode


@cache
def tracked() -> list[str]:
    """Every file of the commit to be, relative to the root."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    return sorted(name for name in listing.stdout.splitlines() if (ROOT / name).is_file())


def modules(*rooms: str) -> list[str]:
    """Written modules under the given folders."""
    folders = tuple(f"{room}/" for room in rooms)
    return [
        n for n in tracked() if n.endswith(".py") and n.startswith(folders) and not n.startswith(GENERATED)
    ]


@cache
def tree(name: str) -> ast.Module:
    return ast.parse((ROOT / name).read_text(), name)


def imported(node: ast.AST) -> list[str]:
    """Dotted names that an import statement may bring in; [] for other nodes."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def imports(name: str) -> list[tuple[int, str]]:
    return [(getattr(node, "lineno", 0), what) for node in ast.walk(tree(name)) for what in imported(node)]


def within(what: str, libraries: set[str]) -> bool:
    return any(what == library or what.startswith(library + ".") for library in libraries)


# -- sizes and names


def test_modules_have_at_most_400_lines() -> None:
    sizes = {
        n: len((ROOT / n).read_text().splitlines())
        for n in modules(*PACKAGES, "tests", "benchmarks", "examples")
    }
    assert sizes, "no module found: is this a git work tree?"
    assert {name: size for name, size in sizes.items() if size > 400} == {}


def test_functions_have_at_most_50_lines() -> None:
    long = [
        f"{name}:{node.lineno} {node.name}: {lines} lines"
        for name in modules(*PACKAGES)
        for node in ast.walk(tree(name))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (lines := (node.end_lineno or node.lineno) - node.body[0].lineno + 1) > 50
    ]
    assert long == []


def test_no_module_is_named_for_odds_and_ends() -> None:
    named = {n for n in modules(*PACKAGES) if ODDS_AND_ENDS & set(Path(n).with_suffix("").parts)}
    assert named - NAMED_BY_THE_DESIGN == set()


def test_proto_holds_the_schema_and_nothing_else() -> None:
    assert [n for n in tracked() if n.startswith("proto/") and not n.endswith(".proto")] == []


def test_tests_are_no_package() -> None:
    assert [n for n in tracked() if n.startswith("tests/") and n.endswith("__init__.py")] == []


# -- words

# Words that must not name a thing of ours (other systems are quoted by their own words).
FORBIDDEN_WORDS = re.compile(
    r"\b(worker_?node|edge_?node|node_id|worker_id|peer_id|gradients_update|global_update|masked_gradient|"
    r"raise NotImplementedError)\b",
    re.IGNORECASE,
)


def test_forbidden_words() -> None:
    found = [
        f"{name}:{number}: {match[0]}"
        for name in modules(*PACKAGES)
        for number, line in enumerate((ROOT / name).read_text().splitlines(), 1)
        if (match := FORBIDDEN_WORDS.search(line))
    ]
    assert found == []


# This machine's paths, package registries and their download addresses; this file names them and is left out.
FORBIDDEN_PLACES = re.compile(
    r"(?<![\w.])/(?:work|opt|root)/\w|/tmp/(?:bash_jobs|pytest-of)"
    r"|\b(?:pypi|pythonhosted|npmjs|deb\.debian)\.(?:org|io|com)\b"
)
ALLOWED_PLACES = re.compile(r"/opt/fedless|/opt/venv|/opt/aws")  # paths on devices and in function containers


def test_no_registry_host_and_no_path_of_this_machine() -> None:
    found = []
    for name in tracked():
        path = ROOT / name
        if name == "tests/unit/test_house.py" or path.stat().st_size > 1_000_000:
            continue
        text = path.read_bytes()
        if b"\0" in text:
            continue
        for number, line in enumerate(text.decode().splitlines(), 1):
            if match := FORBIDDEN_PLACES.search(ALLOWED_PLACES.sub("", line)):
                found.append(f"{name}:{number}: {match[0]}")
    assert found == []


# -- who may import what

# Library -> the only modules or folders (of the packages) that import it.
ONLY_IN: dict[str, tuple[str, ...]] = {
    "tensorflow": ("fedless/authoring/",),
    "keras": ("fedless/authoring/",),
    "ai_edge_litert": ("edge_runtime/trainer.py",),
    "tflite_runtime": ("edge_runtime/trainer.py",),
    "cryptography": (
        "fedless/protocol/crypto.py", "fedless/protocol/identity.py", "aggregator/authority.py",
        "edge_runtime/keystore.py",
    ),
    "azure.functions": ("cloud_adapters/handlers/azure.py", "fedless/helper/entries/azure.py"),
    "azure.identity": ("cloud_adapters/azure.py",),
    "boto3": ("cloud_adapters/aws_lambda.py",),
    "google.auth": ("cloud_adapters/google.py",),
    "httpx": ("cloud_adapters/web.py",),
    "obstore": (
        "cloud_adapters/handlers/objects.py",
        "cloud_adapters/handlers/states.py",
        "aggregator/objects.py",
        "fedless/helper/objects.py",
    ),
    "alembic": ("aggregator/store/",),
    "psycopg": ("aggregator/store/postgresql.py",),
    "sqlalchemy": ("aggregator/", "fedless/helper/"),
    "paho": ("aggregator/wake.py", "aggregator/eviction.py", "edge_runtime/"),
    "typer": ("fedless/console/",),
    "rich": ("fedless/console/", "fedless/experiments/"),
}  # fmt: skip
# The gRPC servers, and one client per room.
GRPC = (
    "aggregator/main.py", "aggregator/service", "aggregator/front.py", "aggregator/helpers.py", "aggregator/link.py",
    "edge_runtime/link.py", "fedless/helper/service.py", "fedless/console/link.py",
    "fedless/experiments/link.py",
)  # fmt: skip
ONLY_IN["grpc"] = GRPC
ONLY_IN["fedless.v1"] = ("fedless/protocol/wire", *GRPC)
ONLY_IN["google.protobuf"] = ("fedless/protocol/wire", *GRPC)


@pytest.mark.parametrize("library", ONLY_IN)
def test_library_is_imported_only_in_its_room(library: str) -> None:
    strays = [
        f"{name}:{line} imports {what}"
        for name in modules(*PACKAGES)
        if not name.startswith(ONLY_IN[library])
        for line, what in imports(name)
        if within(what, {library})
    ]
    assert strays == []


def test_idle_agent_needs_ssl_and_paho_and_nothing_else() -> None:
    """23 MB of resident memory, not 60: asked of a fresh interpreter, since imports have imports."""
    script = "import sys, edge_runtime.agent; print(*{name.partition('.')[0] for name in sys.modules})"
    command = [sys.executable, "-S", "-c", f"import sys; sys.path[:] = {sys.path!r}; {script}"]
    loaded = set(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split())
    dear = {"asyncio", "concurrent", "multiprocessing", "pathlib", "sqlite3", "tomllib", "xml"}
    assert {"ssl", "paho"} <= loaded
    assert loaded & dear == set()
    assert loaded - set(sys.stdlib_module_names) - set(PACKAGES) <= {"paho", "__main__"}


def test_every_library_is_declared() -> None:
    """A module that only the developers' environment has would break `make demo`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    roles = {role: lines for role, lines in project["optional-dependencies"].items() if role != "dev"}
    wanted = [*project["dependencies"], *(line for lines in roles.values() for line in lines)]
    declared = {re.split(r"[^\w-]", line.lower())[0].replace("-", "_") for line in wanted}
    names = {
        "grpc": "grpcio",
        "google": "protobuf",
        "paho": "paho_mqtt",
        "PIL": "pillow",
        "tensorflow": "tensorflow_cpu",
        "keras": "tensorflow_cpu",
        "azure": "azure_core",
        "botocore": "boto3",
        "mlflow": "mlflow_skinny",
        "opentelemetry": "opentelemetry_sdk",
    }
    strays = {
        f"{name}: {what}"
        for name in modules(*PACKAGES)
        for _, what in imports(name)
        if (top := what.split(".")[0]) not in sys.stdlib_module_names
        and top not in PACKAGES
        and names.get(top, top).lower() not in declared
    }
    assert strays == set()


# -- purity

MUST_BE_PURE = {
    "aggregator/round.py", "aggregator/cost.py", "aggregator/plan.py", "aggregator/why.py",
    "edge_runtime/lifecycle.py", "edge_runtime/eligibility.py", "fedless/protocol/errors.py",
    "fedless/protocol/messages.py",
}  # fmt: skip
PURE_FOLDERS = ("aggregator/strategies/", "aggregator/selection/")
REACHES_OUT = {
    "asyncio", "concurrent", "http", "logging", "multiprocessing", "os", "pathlib", "queue", "random",
    "resource", "sched", "secrets", "select", "selectors", "shutil", "signal", "socket", "sqlite3", "ssl",
    "subprocess", "sys", "tempfile", "threading", "time", "urllib", "uuid",
    "google", "grpc", "paho", "psutil", "rich", "sqlalchemy", "stamina", "structlog", "uvloop",
}  # fmt: skip
PURE_PARTS = {"pathlib.PurePath", "pathlib.PurePosixPath"}
# Calls by which a module without such an import still reaches a clock, a file, the terminal or randomness.
REACHING_CALLS = re.compile(
    r"^(open|input|print|exec|eval|__import__|breakpoint|(.+\.)?(now|utcnow|today|fromfile|tofile|memmap|urandom)"
    r"|(np|numpy)\.(load|save|savez|loadtxt|savetxt)"
    r"|(np|numpy)\.random\.(?!default_rng$|Generator$|PCG64$|Philox$|SeedSequence$)\w+)$"
)


def says_pure(name: str) -> bool:
    return (ast.get_docstring(tree(name)) or "").startswith("*Pure.*")


def pure_modules() -> list[str]:
    return [n for n in modules(*PACKAGES) if says_pure(n)]


def own_imports(name: str) -> set[str]:
    """Files of ours that a module imports."""
    named = {what for _, what in imports(name)}
    named |= {what.rpartition(".")[0] for what in named}  # `from a.b import c` names a module a.b or a.b.c
    paths = {f"{what.replace('.', '/')}{end}" for what in named for end in (".py", "/__init__.py")}
    return paths & set(modules(*PACKAGES))


def closure(name: str) -> set[str]:
    """The module and all of ours that it reaches by imports."""
    seen, todo = {name}, [name]
    while todo:
        for further in own_imports(todo.pop()) - seen:
            seen.add(further)
            todo.append(further)
    return seen


def reaches(name: str) -> Iterator[str]:
    for line, what in imports(name):
        if within(what, REACHES_OUT) and what not in PURE_PARTS:
            yield f"{name}:{line} imports {what}"
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Call) and REACHING_CALLS.match(ast.unparse(node.func)):
            yield f"{name}:{node.lineno} calls {ast.unparse(node.func)}"
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("default_rng") and not node.args:
            yield f"{name}:{node.lineno} makes a generator without a seed"


def test_modules_that_must_be_pure_say_so() -> None:
    decide = [n for n in modules(*PACKAGES) if n in MUST_BE_PURE or n.startswith(PURE_FOLDERS)]
    assert [name for name in decide if not says_pure(name)] == []


@pytest.mark.parametrize("name", pure_modules())
def test_pure_module_reaches_nothing_outside(name: str) -> None:
    assert sorted(found for module in closure(name) for found in reaches(module)) == []


def test_protocol_has_no_io() -> None:
    """Only wire sees protobuf; nothing of the protocol sees files, sockets, clocks or its own randomness."""
    found = [
        what
        for name in modules("fedless/protocol")
        for what in reaches(name)
        if not (name.startswith("fedless/protocol/wire") and " imports google.protobuf" in what)
    ]
    assert found == []


def test_imports_are_followed() -> None:
    assert "fedless/protocol/errors.py" in closure("fedless/protocol/signed.py")


def test_impure_code_is_found(tmp_path: Path) -> None:
    """The checks above would pass on anything if `reaches` were blind."""
    sample = tmp_path / "sample.py"
    sample.write_text(
        "import time\nfrom os import path\nx = open('f')\ny = datetime.now()\nz = np.random.default_rng()\n"
    )
    assert len(list(reaches(str(sample)))) == 5


# -- codes


@pytest.mark.parametrize("code", Code)
def test_every_code_has_a_meaning(code: Code) -> None:
    meaning = MEANINGS[code]
    assert meaning.sentence.endswith(".")
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", code.value), "the value is a counter's name"


# -- samples: which loader reads a file of deploy/samples and examples, by the first word of its name

LOADERS = {
    "aggregator": ("aggregator.config", "load"),
    "edge": ("edge_runtime.config", "load"),
    "experiment": ("fedless.experiments.config", "load"),
    "task": ("aggregator.tasks", "load"),
    "function": ("fedless.protocol.manifest", "parse_bytes"),
    "helper": ("fedless.helper.config", "load"),
}


def samples() -> list[str]:
    found = [n for n in tracked() if n.startswith(("deploy/samples/", "examples/")) and n.endswith(".toml")]
    return [n for n in found if Path(n).name != "pyproject.toml"]


@pytest.mark.parametrize("name", samples())
def test_sample_is_read_without_complaint(name: str) -> None:
    kind = re.split(r"[^a-z]", Path(name).stem)[0]
    assert kind in LOADERS, f"name the file after its kind: one of {sorted(LOADERS)}"
    module, function = LOADERS[kind]
    load = getattr(import_module(module), function)
    load(ROOT / name if function == "load" else (ROOT / name).read_bytes())


# -- the database's schema


def test_every_change_of_the_schema_has_a_revision(tmp_path: Path) -> None:
    from tests.schema import columns_of_plain_json, lacking_revisions, wrong_revisions

    assert wrong_revisions() == []
    lacking = lacking_revisions(f"sqlite:///{tmp_path / 'fedless.db'}")
    assert lacking == [], "write a revision (see CONTRIBUTING.md)"
    assert columns_of_plain_json() == [], "use schema.Json"
