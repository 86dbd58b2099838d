"""deploy/cloud: what can be said of the templates without a cloud."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
TEMPLATES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("deploy/cloud/*/*.tf"))


@pytest.mark.parametrize("name", TEMPLATES)
def test_terraform_is_hcl_and_describes_every_variable_it_uses(name: str) -> None:
    hcl2 = pytest.importorskip("hcl2")
    text = (ROOT / name).read_text()
    document = hcl2.loads(text)
    variables = {
        key.strip('"') for block in document["variable"] for key in block if not key.startswith("__")
    }
    used = {
        word.split("var.")[1].rstrip(",})]")
        for word in text.replace('"', " ").split()
        if word.startswith("var.")
    }
    used |= {part.partition("}")[0] for part in text.split("${var.")[1:]}
    assert {word.partition(".")[0] for word in used} <= variables


def test_lambda_template_names_the_entry() -> None:
    assert (
        "cloud_adapters.handlers.aws_lambda.handler" in (ROOT / "deploy/cloud/aws-lambda/main.tf").read_text()
    )
    assert "maximum_retry_attempts = 0" in (ROOT / "deploy/cloud/aws-lambda/main.tf").read_text()


def test_azure_template_describes_the_plan_that_linux_keeps_and_no_key() -> None:
    """Flex Consumption: the old plan is retired on Linux; its settings come by the identity, not by a storage key."""
    text = (ROOT / "deploy/cloud/azure/main.bicep").read_text()
    assert "name: 'FC1', tier: 'FlexConsumption'" in text
    assert "allowSharedKeyAccess: false" in text
    assert "listKeys" not in text
    assert text.count("{") == text.count("}")
    assert text.count("[") == text.count("]")
    declared = {
        line.split()[1] for line in text.splitlines() if line.startswith(("param", "var", "resource"))
    }
    assert {word for word in declared if text.count(word) < 2} == {"ownsItsPackages"}
