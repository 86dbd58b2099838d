"""What an image is asked for: checked whole, and nothing secret told."""

from __future__ import annotations

import pytest

from edge_runtime.firstboot.settings import Wifi, parse
from fedless.image import boot, cloudinit
from fedless.image.options import Wanted, wanted
from fedless.protocol.claim import Claim, secret_text
from fedless.protocol.errors import Code, LocalError

CLAIM = Claim("10.0.2.2:7444", "a" * 26, secret_text(bytes(16))).text
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBmTMJXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXX me@here"
WIFI = Wifi("Café: 2.4", "correct horse", "DE")


def everything() -> Wanted:
    return wanted(
        CLAIM, "greenhouse-7", WIFI, KEY, '[data.default]\npath = "/srv/fedless/x.npz"\n', ("x.npz",)
    )


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(LocalError) as caught:
        wanted("fedless1.x", "UPPER", Wifi("x" * 40, "short-secret", "Deutschland"), "no key", "[", ("../x",))
    assert caught.value.code is Code.CONFIG_INVALID
    for part in ("claim", "hostname", "wifi.ssid", "wifi.country", "ssh key", "edge.toml", "../x"):
        assert part in str(caught.value)
    assert "short-secret" not in str(caught.value)


def test_nothing_secret_is_in_a_repr() -> None:
    assert CLAIM not in repr(everything())
    assert "correct horse" not in repr(everything())


def test_two_keys_in_one_file_are_refused() -> None:
    """A second line would be a second administrator."""
    with pytest.raises(LocalError):
        wanted("", "", None, f"{KEY}\n{KEY}")


def test_the_boot_partition_has_what_the_board_reads() -> None:
    texts = boot.texts(everything(), "vmlinuz-7", "initrd.img-7")
    assert parse(texts["fedless.toml"]) == everything().settings
    assert texts["fedless-claim.txt"] == CLAIM + "\n"
    assert "kernel=vmlinuz-7\ninitramfs initrd.img-7 followkernel\n" in texts["config.txt"]
    assert "root=LABEL=rootfs" in texts["cmdline.txt"]
    assert texts["cmdline.txt"].count("\n") == 1, "the firmware reads one line"
    assert "fedless-claim.txt" not in boot.texts(Wanted(), "k", "i")


def test_a_32_bit_board_is_given_no_kernel() -> None:
    sections = boot.config_txt("vmlinuz-7", "initrd").split("[")
    kernels = {part.partition("]")[0]: part for part in sections[1:]}
    assert boot.NO_KERNEL in kernels["pi0"]
    assert boot.NO_KERNEL in kernels["pi1"]
    assert "kernel=vmlinuz-7" in kernels["pi02"], "a Zero 2 has 64 bits"
    assert sections[-1].startswith("all]")


def test_cloud_inits_files_say_what_was_asked_and_hold_no_claim() -> None:
    yaml = pytest.importorskip("yaml")
    found = cloudinit.files(everything(), "fedless-edge_1_arm64.deb", "fedless-1")
    data = yaml.safe_load(found["user-data"])
    assert found["user-data"].startswith("#cloud-config\n")
    assert data["hostname"] == "greenhouse-7"
    assert data["users"][0]["ssh_authorized_keys"] == [KEY]
    assert data["runcmd"][-1] == ["systemctl", "enable", "--now", "fedless-join.service"]
    network = yaml.safe_load(found["network-config"])["network"]
    point = network["wifis"]["wlan0"]["access-points"]["Café: 2.4"]
    assert len(point["password"]) == 64
    assert found["fedless-claim.txt"].strip() == CLAIM
    assert all(CLAIM not in found[name] for name in ("user-data", "network-config", "meta-data"))
    assert "correct horse" not in "".join(found.values())
