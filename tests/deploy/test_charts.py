"""The Helm chart, the compose file and the Dockerfile against the schemas and linters that need no network.

Run by `make test-deploy`, which installs them; elsewhere the tests are skipped and say so. No cluster and no container
engine runs here: what a controller would do with valid objects is not tested.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy/helm/fedless"
HINT = "run `make test-deploy`"
helm = pytest.importorskip("helm_python", reason=f"helm-python-sdk is not installed: {HINT}")
yaml = pytest.importorskip("yaml", reason=f"PyYAML is not installed: {HINT}")
TOOLS = Path(sys.executable).parent
FOREIGN = ("Certificate", "Issuer", "ServiceMonitor", "TLSRoute")
MODELS = Path(os.environ.get("FEDLESS_DEPLOY_TOOLS", ROOT / ".venv-deploy-tools"))

KEY = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
LEAST: dict[str, Any] = {"fleet": {"publisherKeys": [KEY]}, "hosts": ["fleet.example.org"]}
CASES: dict[str, dict[str, Any]] = {
    "least": {},
    "standby": {
        "replicas": 3, "persistence": {"accessMode": "ReadWriteMany"},
        "database": {"url": "postgresql://fedless@db.example.org/fedless", "passwordSecret": "fedless-db"},
    },
    "trial": {
        "postgresql": {"enabled": True},
        "settings": {"log": {"level": "debug"}, "policy": {"minimum_cohort": 20}},
    },
    "everything": {
        "postgresql": {"enabled": True},
        "ingress": {"enabled": True}, "service": {"type": "ClusterIP"},
        "tlsRoute": {"enabled": True, "parentRefs": [{"name": "edge", "sectionName": "tls"}]},
        "certManager": {"enabled": True, "authoritySecret": "fedless-authority"},
        "metrics": {"enabled": True}, "serviceMonitor": {
            "enabled": True, "labels": {"release": "prom"}, "certificateSecret": "fedless-operator",
        },
        "networkPolicy": {"metricsFrom": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}]},
        "imagePullSecrets": [{"name": "pull"}], "nodeSelector": {"kubernetes.io/arch": "arm64"},
        "env": [{"name": "AWS_REGION", "value": "eu-central-1"}], "envFrom": [{"secretRef": {"name": "s3"}}],
        "settings": {"broker": {"max_queued_messages": 2000}, "listen": {}, "state": {"database_wait_s": 90}},
    },
}  # fmt: skip
REFUSED: dict[str, dict[str, Any]] = {
    "an unknown key": {"replica": 2},
    "no host": {"hosts": []},
    "a password in the URL": {"database": {"url": "postgresql://fedless:hunter2@db/fedless"}},
    "two aggregators on one disk": {"replicas": 2, "postgresql": {"enabled": True}},
    "two aggregators on SQLite": {"replicas": 2, "persistence": {"accessMode": "ReadWriteMany"}},
    "a monitor of nothing": {"serviceMonitor": {"enabled": True, "certificateSecret": "fedless-operator"}},
    "a monitor of nobody": {"serviceMonitor": {"enabled": True}, "metrics": {"enabled": True}},
    "a certificate of nobody": {"certManager": {"enabled": True}},
    "a route of no gateway": {"tlsRoute": {"enabled": True}},
}


def merged(values: Mapping[str, Any]) -> dict[str, Any]:
    return {**LEAST, **values}


def rendered(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    texts = helm.Chart.load(str(CHART)).render(merged(values), name="home", namespace="fleet")
    return [
        item
        for name, text in texts.items() if not name.endswith(".txt")
        for item in yaml.safe_load_all(text) if item
    ]  # fmt: skip


def found(objects: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [item for item in objects if item["kind"] == kind]


def tool(*command: str | Path, given: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command],
        input=given,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
        cwd=ROOT,
    )


@pytest.mark.parametrize("case", CASES)
def test_chart_has_no_complaint_of_the_linter(case: str) -> None:
    report = helm.lint(str(CHART), merged(CASES[case]), strict=True)
    assert report.get("success", not report.get("errors")), report


@pytest.mark.parametrize("case", CASES)
def test_objects_are_valid_for_kubernetes(case: str, tmp_path: Path) -> None:
    objects = rendered(CASES[case])
    native = [
        item
        for item in objects
        if "." not in item["apiVersion"].split("/")[0] or "k8s.io" in item["apiVersion"]
    ]
    native = [item for item in native if item["kind"] != "TLSRoute"]
    assert {"StatefulSet", "Service", "ConfigMap", "NetworkPolicy", "PodDisruptionBudget"} <= {
        i["kind"] for i in native
    }
    file = tmp_path / "objects.yaml"
    file.write_text(yaml.safe_dump_all(native))
    answer = tool(TOOLS / "kubernetes-validate", "--strict", "--kubernetes-version", "1.33", file)
    assert answer.returncode == 0, answer.stdout + answer.stderr


@pytest.mark.skipif(not (MODELS / "node_modules").is_dir(), reason=f"the models are not installed: {HINT}")
def test_objects_of_other_controllers_fit_their_models() -> None:
    script = ROOT / "deploy/helm/models.mjs"
    objects = rendered(CASES["everything"])
    answer = tool("node", script, MODELS, given=json.dumps(objects))
    assert answer.returncode == 0, answer.stderr
    assert sorted(json.loads(answer.stdout)) == sorted(FOREIGN)
    del found(objects, "Certificate")[0]["spec"]["secretName"]
    assert tool("node", script, MODELS, given=json.dumps(objects)).returncode != 0


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_refused(case: str) -> None:
    with pytest.raises(helm.HelmError):
        helm.Chart.load(str(CHART)).validate_schema(merged(REFUSED[case]))


@pytest.mark.parametrize("case", CASES)
def test_configuration_in_the_chart_is_one_that_the_service_takes(case: str, tmp_path: Path) -> None:
    objects = rendered(CASES[case])
    config = next(item for item in found(objects, "ConfigMap"))
    file = tmp_path / "aggregator.toml"
    file.write_text(config["data"]["aggregator.toml"])
    interpreter = os.environ.get("FEDLESS_PYTHON")
    if not interpreter:
        pytest.skip(f"FEDLESS_PYTHON names no interpreter that has fedless: {HINT}")
    code = "import pathlib, sys; from aggregator.config import load; print(load(pathlib.Path(sys.argv[1])).listen)"
    answer = tool(interpreter, "-c", code, file)
    assert answer.returncode == 0, answer.stderr + file.read_text()
    assert "fleet.example.org" in answer.stdout


def test_pods_run_without_rights() -> None:
    for item in found(rendered(CASES["everything"]), "StatefulSet"):
        pod = item["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        for container in pod["containers"] + pod.get("initContainers", []):
            rights = container["securityContext"]
            assert rights["allowPrivilegeEscalation"] is False
            assert rights["capabilities"] == {"drop": ["ALL"]}


def test_keys_reach_the_pod_by_the_secret_alone() -> None:
    kinds = ("ConfigMap", "StatefulSet")
    text = json.dumps([item for item in rendered(CASES["everything"]) if item["kind"] in kinds])
    assert "BEGIN" not in text
    assert "publisher.key" not in text
    assert "operator" not in text


def test_standby_waits_and_the_only_one_does_not() -> None:
    for case, says in (("standby", True), ("least", False)):
        container = found(rendered(CASES[case]), "StatefulSet")[0]["spec"]["template"]["spec"]["containers"][
            0
        ]
        assert ("--standby" in container["args"]) is says


def test_dockerfile_has_no_complaint_of_the_linter() -> None:
    answer = tool(TOOLS / "hadolint", "deploy/docker/Dockerfile")
    assert answer.returncode == 0, answer.stdout


def test_compose_file_fits_its_schema() -> None:
    file = ROOT / "deploy/docker/compose.yaml"
    answer = tool(TOOLS / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", file)
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_compose_file_has_every_secret_that_is_made(tmp_path: Path) -> None:
    script = tmp_path / "secrets.sh"
    shutil.copy(ROOT / "deploy/docker/secrets.sh", script)
    assert tool("bash", script).returncode == 0
    folder = tmp_path / "secrets"
    assert folder.stat().st_mode & 0o777 == 0o700
    made = {f"./secrets/{path.name}" for path in folder.iterdir()}
    compose = yaml.safe_load((ROOT / "deploy/docker/compose.yaml").read_text())
    assert {secret["file"] for secret in compose["secrets"].values()} == made
    options = tomllib.loads((folder / "objects-options.toml").read_text())
    assert options["access_key_id"] in (folder / "objects-identities.json").read_text()
    assert tool("bash", script).returncode == 1, "they are made once"


def test_yaml_is_tidy() -> None:
    files = [ROOT / "deploy/docker/compose.yaml", CHART / "values.yaml", CHART / "Chart.yaml"]
    rules = "{extends: default, rules: {line-length: {max: 130}, document-start: disable, braces: disable,"
    rules += " brackets: disable, comments: {min-spaces-from-content: 1}}}"
    answer = tool(TOOLS / "yamllint", "--strict", "-d", rules, *files)
    assert answer.returncode == 0, answer.stdout


def test_image_has_the_files_that_it_copies() -> None:
    lines = (ROOT / "deploy/docker/Dockerfile").read_text().splitlines()
    sources = [
        word
        for line in lines
        if line.startswith("COPY") and "--from" not in line
        for word in line.split()[1:-1]
    ]
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for source in (word for word in sources if not word.startswith("--")):
        assert (ROOT / source).exists(), source
        assert source in kept, f"{source} is not in .dockerignore's list"


def test_node_is_there() -> None:
    if not (MODELS / "node_modules").is_dir():
        pytest.skip(f"the models are not installed: {HINT}")
    assert shutil.which("node")
