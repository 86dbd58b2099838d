"""A function's package for one platform: our code, pinned wheels for the platform's tag, the deployment; no tensorflow.

Called by `fedless function package`, and with other `Contents` by `fedless helper package`. Wheels come through pip,
each checked against its hash in a lock; nothing is built from source, so this machine need not be like the platform.
"""

from __future__ import annotations

import os
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from cloud_adapters import wheels
from fedless.protocol.cloud import deployment_from_json
from fedless.protocol.errors import Code, LocalError

MB = 1 << 20
LAMBDA_UNZIPPED_MB = 250
"""docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html: a deployment package, unzipped, with its layers."""
LAMBDA_UPLOAD_MB = 50
DEPLOYMENT = "fedless-deployment.json"
KEYS = "keys.json"
"""The file that holds a function's secret, where whoever deploys it put it."""
ARCHITECTURES = ("x86_64", "aarch64")
_LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.pyi", "*.in", "tests", "*.a", "*.pxd", "include")
_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Package:
    """What was made. `size_bytes` is unpacked; `path` is a zip or a folder; `notes` are for people."""

    path: Path
    size_bytes: int
    zip_bytes: int
    commands: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Contents:
    """What is packaged: `text` is the deployment, as the file `file`; `name` is the function's on its platform.

    `code`: our modules and packages, `locks`: files of pinned wheels. `entries`: the package of entry files; `called`:
    what its `google` exports, the one for HTTP first. `secret`: the variable that the platform sets from its secret, if
    there is one: the text of the file `keys.json`, which is never in the package.
    """

    text: str
    file: str
    name: str
    code: tuple[str, ...]
    locks: tuple[Path, ...]
    entries: str
    called: tuple[str, ...]
    secret: str = ""


@dataclass(frozen=True)
class Wanted:
    """What to make: for whom (the deployment's text, or contents), where, and for which Python and processor."""

    deployment: str | Contents
    out: Path
    python: str = f"{sys.version_info.major}.{sys.version_info.minor}"
    architecture: str = "x86_64"

    @property
    def contents(self) -> Contents:
        """What is packaged. Raises `LocalError(CONFIG_INVALID)`."""
        given = self.deployment
        return given if isinstance(given, Contents) else trainer(given)

    @property
    def name(self) -> str:
        """The function's name on its platform."""
        return self.contents.name


def trainer(deployment: str) -> Contents:
    """A function that trains. Raises `LocalError(CONFIG_INVALID)`."""
    parsed = deployment_from_json(deployment)
    paths = (str(table.get("path")) for table in parsed.data.values())
    objects = bool(parsed.states) or any("://" in path for path in paths)
    return Contents(
        text=deployment,
        file=DEPLOYMENT,
        name=f"fedless-{parsed.client_id}",
        code=("fedless/__init__.py", "fedless/protocol", "fedless/v1", "edge_runtime", "cloud_adapters/__init__.py",
              "cloud_adapters/handlers"),
        locks=(lock("requirements.txt"), *([lock("objects.txt")] if objects else [])),
        entries="cloud_adapters.handlers",
        called=("fedless", "fedless_event"),
    )  # fmt: skip


def lock(name: str) -> Path:
    """One of this room's files of pinned wheels."""
    return Path(__file__).parent / "handlers" / name


def package(target: str, wanted: Wanted) -> Package:
    """Make the package of a platform under `wanted.out`, which must not exist yet.

    Raises `LocalError` CONFIG_INVALID, STATE_EXISTS, NOT_INSTALLED (no pip), FUNCTION_LIMIT (too large for Lambda).
    """
    make = TARGETS.get(target)
    if make is None or wanted.architecture not in ARCHITECTURES:
        detail = f"Expected a target of {', '.join(TARGETS)} for {' or '.join(ARCHITECTURES)}."
        raise LocalError(Code.CONFIG_INVALID, detail)
    _ = wanted.contents  # it is refused before anything is made
    if wanted.out.exists():
        raise LocalError(Code.STATE_EXISTS, f"{wanted.out} exists.", fix="Name another --out, or remove it.")
    wanted.out.mkdir(parents=True)
    try:
        return make(wanted)
    except BaseException:
        shutil.rmtree(wanted.out, ignore_errors=True)
        raise


def _aws_lambda(wanted: Wanted) -> Package:
    content = wanted.out / "content"
    _wheels(wanted, content)
    _code(wanted, content)
    size = _size(content)
    if size > LAMBDA_UNZIPPED_MB * MB:
        raise LocalError(
            Code.FUNCTION_LIMIT,
            f"{size / MB:.0f} MB unzipped; Lambda takes {LAMBDA_UNZIPPED_MB} MB.",
            fix="Use a container image: --target knative makes a context that Lambda's web adapter can run, too.",
        )
    archive = _zip(content, wanted.out / "function.zip")
    zipped = archive.stat().st_size
    name, arm = wanted.name, wanted.architecture == "aarch64"
    create = (
        f"aws lambda create-function --function-name {name} --runtime python{wanted.python} "
        f"--handler {wanted.contents.entries}.aws_lambda.handler --memory-size 1024 --timeout 900 "
        f"--architectures {'arm64' if arm else 'x86_64'} --role ROLE_ARN "
        + (f"--environment file://{KEYS} " if wanted.contents.secret else "")
    )
    if zipped > LAMBDA_UPLOAD_MB * MB:
        upload = f"aws s3 cp {archive} s3://BUCKET/{name}.zip"
        commands: tuple[str, ...] = (upload, create + f"--code S3Bucket=BUCKET,S3Key={name}.zip")
    else:
        commands = (create + f"--zip-file fileb://{archive}",)
    shutil.rmtree(content)
    return Package(
        archive,
        size,
        zipped,
        commands,
        (
            f"Lambda takes {LAMBDA_UNZIPPED_MB} MB unzipped.",
            *_or(wanted, "Or apply deploy/cloud/aws-lambda with Terraform."),
        ),
    )


def _azure(wanted: Wanted) -> Package:
    content = wanted.out / "app"
    _wheels(wanted, content / ".python_packages" / "lib" / "site-packages", _AZURE)
    _code(wanted, content)
    (content / "function_app.py").write_text(
        f"from {wanted.contents.entries}.azure import app\n\n__all__ = ['app']\n"
    )
    (content / "host.json").write_text(_HOST_JSON)
    size = _size(content)
    archive = _zip(content, wanted.out / "app.zip")
    shutil.rmtree(content)
    command = f"az functionapp deployment source config-zip --resource-group GROUP --name {wanted.name} --src {archive}"
    commands = (*_secret(wanted, _AZURE_KEYS), command)
    notes = (
        f"The app must run Linux, Python {wanted.python}.",
        *_or(wanted, "deploy/cloud/azure has a Bicep file for it."),
    )
    return Package(archive, size, archive.stat().st_size, commands, notes)


def _google(wanted: Wanted) -> Package:
    content = wanted.out / "source"
    _code(wanted, content)
    made = wanted.contents
    (content / "main.py").write_text(
        f"from {made.entries}.google import {', '.join(made.called)}\n\n__all__ = {list(made.called)!r}\n"
    )
    (content / "requirements.txt").write_text(
        "".join(path.read_text(encoding="utf-8") for path in made.locks)
    )
    runtime = "python" + wanted.python.replace(".", "")
    command = (
        f"gcloud functions deploy {wanted.name} --gen2 --runtime {runtime} --source {content} "
        f"--entry-point {made.called[0]} "
        "--trigger-http --no-allow-unauthenticated --memory 1Gi --cpu 1 --concurrency 1 --timeout 3600 "
        "--set-env-vars FEDLESS_TIMEOUT_S=3600"
        + (f" --set-secrets {made.secret}={wanted.name}-keys:latest" if made.secret else "")
    )
    return Package(
        content,
        _size(content),
        0,
        (*_secret(wanted, _GOOGLE_KEYS), command),
        ("Google's builder adds functions-framework and installs the pinned wheels.",),
    )


def _container(wanted: Wanted, start: str) -> Path:
    """A context: an image of this Python, the wheels and the code; `start` is the end of its Dockerfile."""
    context = wanted.out / "context"
    _wheels(wanted, context / "site")
    _code(wanted, context / "site")
    text = resources.files("cloud_adapters.handlers").joinpath("Containerfile").read_text(encoding="utf-8")
    start = start.replace("@ENTRIES@", wanted.contents.entries)
    (context / "Dockerfile").write_text(text.replace("@PYTHON@", wanted.python) + start)
    return context


def _openfaas(wanted: Wanted) -> Package:
    context = _container(wanted, _WATCHDOG)
    image, name = f"REGISTRY/{wanted.name}:latest", wanted.name
    stack = _STACK.format(name=name, image=image)
    if variable := wanted.contents.secret:
        stack = stack.replace(
            "environment: {", f"environment: {{{variable}: /var/openfaas/secrets/{name}-keys, "
        )
        stack += f"    secrets: [{name}-keys]\n"
    (wanted.out / "stack.yml").write_text(stack)
    commands = (
        *_secret(wanted, _OPENFAAS_KEYS),
        *_build(wanted, context, image),
        f"faas-cli deploy -f {wanted.out / 'stack.yml'}",
    )
    return Package(context, _size(context), 0, commands)


def _knative(wanted: Wanted) -> Package:
    context = _container(wanted, _SERVER)
    image, name = f"REGISTRY/{wanted.name}:latest", wanted.name
    service = _SERVICE.format(name=name, image=image)
    if variable := wanted.contents.secret:
        service = service.replace(
            "          env:\n", f"          env:\n{_KNATIVE_ENV.format(variable=variable, name=name)}"
        )
    (wanted.out / "service.yaml").write_text(service)
    commands = (
        *_secret(wanted, _KNATIVE_KEYS),
        *_build(wanted, context, image),
        f"kubectl apply -f {wanted.out / 'service.yaml'}",
    )
    return Package(context, _size(context), 0, commands)


def _openwhisk(wanted: Wanted) -> Package:
    """The wheels are larger than the 48 MB that an action's code may have: they go into the action's image."""
    context = wanted.out / "context"
    _wheels(wanted, context / "site")
    (context / "Dockerfile").write_text(
        f"FROM openwhisk/action-python-v{wanted.python}\nCOPY site /opt/fedless\nENV PYTHONPATH=/opt/fedless\n"
    )
    content = wanted.out / "content"
    _code(wanted, content)
    (content / "__main__.py").write_text(
        f"from {wanted.contents.entries}.openwhisk import main\n\n__all__ = ['main']\n"
    )
    archive = _zip(content, wanted.out / "action.zip")
    size = _size(context) + _size(content)
    shutil.rmtree(content)
    image = f"REGISTRY/{wanted.name}:latest"
    commands = (
        *_build(wanted, context, image),
        f"wsk action create {wanted.name} {archive} --docker {image} --main main --memory 512 --timeout 300000"
        + (f" --param-file {KEYS}" if wanted.contents.secret else ""),
    )
    return Package(archive, size, archive.stat().st_size, commands)


TARGETS: dict[str, Callable[[Wanted], Package]] = {
    "aws-lambda": _aws_lambda,
    "azure": _azure,
    "google": _google,
    "knative": _knative,
    "openfaas": _openfaas,
    "openwhisk": _openwhisk,
}
_AZURE = ("azure-functions",)
_AZURE_KEYS = (
    "az keyvault secret set --vault-name VAULT --name {name}-keys --file {keys} && az functionapp config appsettings "
    "set --resource-group GROUP --name {name} "
    "--settings '{variable}=@Microsoft.KeyVault(VaultName=VAULT;SecretName={name}-keys)'"
)
_GOOGLE_KEYS = "gcloud secrets create {name}-keys --data-file {keys}"
_OPENFAAS_KEYS = "faas-cli secret create {name}-keys --from-file {keys}"
_KNATIVE_KEYS = "kubectl create secret generic {name}-keys --from-file keys={keys}"
_KNATIVE_ENV = """\
            - name: {variable}
              valueFrom: {{secretKeyRef: {{name: {name}-keys, key: keys}}}}
"""
_HOST_JSON = """\
{
  "version": "2.0",
  "functionTimeout": "00:10:00",
  "extensions": {"http": {"maxConcurrentRequests": 1}}
}
"""
_SERVER = 'CMD ["python", "-m", "@ENTRIES@.server"]\n'
_WATCHDOG = """\
COPY --from=ghcr.io/openfaas/of-watchdog:0.10.7 /fwatchdog /usr/bin/fwatchdog
ENV PORT=8081 mode=http upstream_url=http://127.0.0.1:8081 exec_timeout=1h read_timeout=1h write_timeout=1h \\
    max_inflight=1 fprocess="python -m @ENTRIES@.openfaas"
ENTRYPOINT ["fwatchdog"]
"""
_STACK = """\
version: 1.0
provider: {{name: openfaas}}
functions:
  {name}:
    image: {image}
    skip_build: true
    limits: {{memory: 1Gi}}
    environment: {{exec_timeout: 1h, read_timeout: 1h, write_timeout: 1h}}
"""
_SERVICE = """\
apiVersion: serving.knative.dev/v1
kind: Service
metadata:
  name: {name}
spec:
  template:
    spec:
      containerConcurrency: 1
      timeoutSeconds: 600
      containers:
        - image: {image}
          env:
            - {{name: FEDLESS_TIMEOUT_S, value: "600"}}
          resources:
            limits: {{memory: 1Gi, cpu: "1"}}
"""


def _build(wanted: Wanted, context: Path, image: str) -> tuple[str, str]:
    platform = "linux/arm64" if wanted.architecture == "aarch64" else "linux/amd64"
    return f"docker build --platform {platform} -t {image} {context}", f"docker push {image}"


def _secret(wanted: Wanted, command: str) -> tuple[str, ...]:
    """How the platform gets its secret; none for a function without one."""
    made = wanted.contents
    return (command.format(name=made.name, variable=made.secret, keys=KEYS),) if made.secret else ()


def _or(wanted: Wanted, note: str) -> tuple[str, ...]:
    """A note about the files of deploy/cloud, which are for functions that train."""
    return () if wanted.contents.secret else (note,)


def _wheels(wanted: Wanted, target: Path, further: tuple[str, ...] = ()) -> None:
    """Install the pinned wheels, and a platform's own library, for the platform's tag."""
    calls = [wheels.pinned(path) for path in wanted.contents.locks]
    wheels.install(
        target, wheels.Target(wanted.python, wanted.architecture), *calls, *([further] if further else [])
    )


def _code(wanted: Wanted, target: Path) -> None:
    """Our own packages, as far as a function needs them, and what it is deployed with."""
    root = Path(__file__).parents[1]
    for name in wanted.contents.code:
        source, place = root / name, target / name
        if source.is_dir():
            shutil.copytree(source, place, ignore=_LEFT_OUT)
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, place)
    (target / wanted.contents.file).write_text(wanted.contents.text, encoding="utf-8")


def _zip(folder: Path, archive: Path) -> Path:
    """The same content gives the same bytes."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as zipped:
        for path in sorted(_files(folder)):
            entry = zipfile.ZipInfo(str(path.relative_to(folder)), _EPOCH)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            zipped.writestr(entry, path.read_bytes())
    return archive


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in _files(folder))


def _files(folder: Path) -> Iterable[Path]:
    return (Path(parent) / name for parent, _, names in os.walk(folder) for name in names)
