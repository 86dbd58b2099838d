"""First boot: what is diagnosed, told and done, on a board that is a folder."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from edge_runtime.firstboot import plan, settings, steps
from edge_runtime.firstboot.machine import Answer
from edge_runtime.firstboot.main import join_only, look, set_up
from edge_runtime.firstboot.plan import Network, Standing, Trouble
from edge_runtime.firstboot.settings import BoardSettings, Wifi
from edge_runtime.firstboot.show import show
from fedless.protocol.errors import Code, LocalError
from tests.board import Board, PowerCutError

WRONG_KEY = 'wlan0: CTRL-EVENT-SSID-TEMP-DISABLED id=0 ssid="x" auth_failures=1 duration=10 reason=WRONG_KEY'
HANDSHAKE = "wlan0: WPA: 4-Way Handshake failed - pre-shared key may be incorrect"
WIFI = Wifi("Café 2.4", "correct horse", "DE")


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Board(tmp_path)


# -- diagnosis


@pytest.mark.parametrize(
    ("network", "trouble"),
    [
        (Network(carrier=True, address=True), None),
        (Network(carrier=False, address=False), Trouble.NO_LINK),
        (Network(carrier=True, address=False), Trouble.NO_ADDRESS),
        (Network(False, False, wifi_wanted=True), Trouble.NO_WIFI_DEVICE),
        (Network(False, False, True, True, "SCANNING"), Trouble.WIFI_NOT_FOUND),
        (Network(False, False, True, True, "COMPLETED"), Trouble.NO_ADDRESS),
        (Network(False, False, True, True, "SCANNING", WRONG_KEY), Trouble.WIFI_PASSWORD),
        (Network(False, False, True, True, "4WAY_HANDSHAKE", HANDSHAKE), Trouble.WIFI_PASSWORD),
        (Network(True, True, wifi_wanted=True), None),
    ],
)  # fmt: skip
def test_what_keeps_a_board_off_the_network(network: Network, trouble: Trouble | None) -> None:
    assert plan.diagnose(network) is trouble


def test_every_trouble_is_told_with_a_remedy() -> None:
    for trouble in Trouble:
        lines = plan.banner(Standing(trouble))
        assert any(line.startswith("What to do: ") and line.endswith(".") for line in lines)
        assert 10 <= plan.SIGNALS[trouble].retry_s <= 300
        assert plan.pattern(trouble, busy=False).count("1 200") == plan.SIGNALS[trouble].blinks


@pytest.mark.parametrize(
    ("reason", "trouble"),
    [
        (
            "SSLCertVerificationError: certificate verify failed: unable to get local issuer",
            Trouble.OTHER_AUTHORITY,
        ),
        ("certificate has expired: by this device's clock ...; check the clock", Trouble.CLOCK),
        ("ConnectionRefusedError: [Errno 111] Connection refused", Trouble.BROKER_AWAY),
        ("Not authorized", Trouble.REVOKED),
    ],
)
def test_what_the_agents_last_word_means(reason: str, trouble: Trouble) -> None:
    assert plan.of_agent("disconnected", reason) is trouble
    assert plan.of_agent("connected", "127.0.0.1:8883") is None


@pytest.mark.parametrize(
    ("model", "known"),
    [
        ("Raspberry Pi 5 Model B Rev 1.0", True),
        ("Raspberry Pi Zero 2 W Rev 1.0", True),
        ("linux,dummy-virt", False),
    ],
)
def test_a_board_that_the_image_was_not_made_for_is_named(model: str, known: bool) -> None:
    assert (plan.board_note(model) == "") is known


# -- the boot partition's settings


def test_settings_come_back_from_their_text() -> None:
    given = BoardSettings("greenhouse-7", Wifi('with "quotes" \\ ü', "correct horse", "GB", hidden=True))
    assert settings.parse(given.text()) == given
    assert settings.parse(BoardSettings().text()) == BoardSettings()


@pytest.mark.parametrize(
    "text",
    [
        "hostname = 'UPPER'", "hostname = 5", "hostnam = 'x'", "[wifi]\nssid = 'x'", "not toml",
        "[wifi]\nssid = 'x'\ncountry = 'de'\nsecret = 'long enough'", "wifi = 3",
        "[wifi]\nssid = '123456789012345678901234567890123'\ncountry = 'DE'\nsecret = 'long enough'",
    ],
)  # fmt: skip
def test_mistakes_in_the_settings_are_refused(text: str) -> None:
    with pytest.raises(LocalError) as caught:
        settings.parse(text)
    assert caught.value.code is Code.CONFIG_INVALID


@pytest.mark.parametrize("secret", ["'short'", "1234567890", "'tab\there and more'", "['a list of one']"])
def test_a_bad_secret_is_refused_and_never_shown(secret: str) -> None:
    with pytest.raises(LocalError) as caught:
        settings.parse(f"[wifi]\nssid = 'x'\ncountry = 'DE'\nsecret = {secret}")
    assert secret.strip("'[]") not in str(caught.value)
    assert "correct horse" not in repr(BoardSettings("", WIFI))


def test_the_pre_shared_key_is_the_standards() -> None:
    """IEEE 802.11-2020, J.4.2, test vector 1."""
    key = "f42c6fc52df0ebef9ebb4b90b38a5f902e83fe1b135a70e23aed762e9710a12e"
    assert settings.pre_shared_key(Wifi("IEEE", "password", "US")) == key


def test_no_network_name_can_break_out_of_the_supplicants_file() -> None:
    name = 'x"\n}\nnetwork={'
    text = settings.supplicant(Wifi(name, "long enough", "DE"))
    assert text.count("network={") == 1
    assert f"ssid={name.encode().hex()}" in text


# -- the steps


def test_the_root_file_system_grows_once(board: Board) -> None:
    board.card(has_mb=1400, could_mb=30_000)
    assert steps.grow(board.machine) is None
    assert board.called("sfdisk") == [["sfdisk", "--no-reread", "--force", "-N", "2", "/dev/mmcblk0"]]
    assert board.called("resize2fs") == [["resize2fs", "/dev/mmcblk0p2"]]
    steps.grow(board.machine)
    assert len(board.called("resize2fs")) == 1


def test_power_cut_while_the_file_system_grew_makes_it_grow_again(board: Board) -> None:
    board.card(has_mb=1400, could_mb=30_000)
    board.said["resize2fs"] = Answer(1, "cut")
    steps.grow(board.machine)
    board.said["resize2fs"] = Answer(0, "")
    steps.grow(board.machine)
    assert len(board.called("resize2fs")) == 2


def test_a_card_that_is_too_small_is_told(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    board.card(has_mb=1400, could_mb=1400)
    little = os.statvfs_result((4096, 4096, 100, 10, 10, 100, 10, 10, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _: little)
    assert not set_up(board.machine, lambda _: None, attempts=1)
    assert board.called("sfdisk") == []
    assert "The SD card is too small." in board.status


def test_a_clock_behind_the_build_is_set(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    """A board without a battery wakes in 1970."""
    floor = board.put("/usr/lib/clock-epoch", "")
    os.utime(floor, (2_000_000_000, 2_000_000_000))
    told: list[float] = []
    monkeypatch.setattr(time, "clock_settime", lambda _, moment: told.append(moment))
    assert steps.clock(board.machine)
    os.utime(floor, (1_000_000_000, 1_000_000_000))
    assert not steps.clock(board.machine)
    assert told == [2_000_000_000]


def test_wifi_is_set_up_and_corrected_from_the_boot_partition(board: Board) -> None:
    board.put("/boot/firmware/fedless.toml", BoardSettings("", WIFI).text())
    steps.apply_settings(board.machine)
    path = "/etc/wpa_supplicant/wpa_supplicant-wlan0.conf"
    first = board.text(path)
    assert (board.root / path.lstrip("/")).stat().st_mode & 0o777 == 0o600
    steps.apply_settings(board.machine)
    assert len([c for c in board.called("systemctl") if "restart" in c]) == 1
    board.put(
        "/boot/firmware/fedless.toml", BoardSettings("", Wifi("Café 2.4", "the right one", "DE")).text()
    )
    steps.apply_settings(board.machine)
    assert board.text(path) != first
    assert len([c for c in board.called("systemctl") if "restart" in c]) == 2
    board.put("/boot/firmware/fedless.toml", "")
    steps.apply_settings(board.machine)
    assert not (board.root / path.lstrip("/")).exists()


def test_power_cut_at_any_command_of_setting_up_is_made_good_at_the_next_start(tmp_path: Path) -> None:
    """Once a file without its unit enabled was taken for done, and such a board never had Wi-Fi."""
    number = 0
    while True:
        board = Board(tmp_path / str(number))
        board.card(has_mb=1400, could_mb=30_000)
        board.put("/usr/sbin/sshd", "")
        board.put("/boot/firmware/fedless.toml", BoardSettings("greenhouse-7", WIFI).text())
        try:
            set_up(board.cut_at(number), lambda _: None, attempts=1)
            break
        except PowerCutError:
            number += 1
        set_up(board.machine, lambda _: None, attempts=1)
        check_set_up(board)
    assert number >= 9, "keys, card, name and Wi-Fi take as many commands"


def check_set_up(board: Board) -> None:
    for wanted in ("ssh-keygen", "sfdisk", "resize2fs"):
        assert board.called(wanted), wanted
    assert ["systemctl", "enable", "wpa_supplicant@wlan0.service"] in board.commands
    assert board.text("/etc/wpa_supplicant/wpa_supplicant-wlan0.conf") == settings.supplicant(WIFI)
    assert board.text("/etc/hostname") == "greenhouse-7\n"
    assert "greenhouse-7" in board.text("/etc/hosts")
    assert "no claim" in board.status


def test_boards_name_themselves_apart(board: Board) -> None:
    steps.apply_settings(board.machine)
    assert board.text("/etc/hostname") == "fedless-cdef12\n"
    board.put("/boot/firmware/fedless.toml", 'hostname = "greenhouse-7"')
    steps.apply_settings(board.machine)
    assert board.text("/etc/hostname") == "greenhouse-7\n"


def test_a_mistake_in_the_settings_leaves_the_network_as_it_is(board: Board) -> None:
    board.put("/boot/firmware/fedless.toml", BoardSettings("here", WIFI).text())
    steps.apply_settings(board.machine)
    board.put("/boot/firmware/fedless.toml", "[wifi\n")
    _, complaint = steps.apply_settings(board.machine)
    assert "fedless.toml" in complaint
    assert board.text("/etc/hostname") == "here\n"


# -- telling


def test_what_is_told_is_written_only_when_it_changes(board: Board) -> None:
    assert show(board.machine, Standing(Trouble.NO_LINK))
    path = board.root / "boot/firmware/fedless-status.txt"
    os.utime(path, (1, 1))
    assert not show(board.machine, Standing(Trouble.NO_LINK))
    assert path.stat().st_mtime == 1, "an idle board writes nothing to its card"
    assert show(board.machine, Standing(Trouble.NO_CLAIM))
    assert "no claim" in board.status
    assert "no claim" in board.text("/run/issue.d/fedless.issue")
    assert "no claim" in board.text("/dev/console")


def test_the_led_blinks_the_trouble(board: Board) -> None:
    for name in ("trigger", "pattern", "repeat"):
        board.put(f"/sys/class/leds/ACT/{name}", "")
    show(board.machine, Standing(Trouble.WIFI_PASSWORD))
    assert board.text("/sys/class/leds/ACT/trigger") == "pattern"
    assert board.text("/sys/class/leds/ACT/pattern").count("1 200") == 3
    show(board.machine, Standing(joined="a in fleet b"))
    assert board.text("/sys/class/leds/ACT/trigger") == "none"


def test_a_boot_partition_that_cannot_be_written_stops_nothing(board: Board) -> None:
    (board.root / "boot/firmware").rmdir()
    assert show(board.machine, Standing(Trouble.NO_LINK))


# -- the loop


def test_without_a_claim_it_asks_for_one_and_waits(board: Board) -> None:
    board.network()
    pauses: list[float] = []
    assert not set_up(board.machine, pauses.append, attempts=2)
    assert pauses == [30, 30]
    assert "no claim" in board.status


def test_without_a_network_it_waits_quietly_first_and_tells_then(board: Board) -> None:
    board.claim("fedless1.x")
    board.network(carrier=False, route=False)
    seen: list[str] = []
    set_up(board.machine, lambda _: seen.append(board.status), attempts=5)
    assert ["There is no network." in text for text in seen] == [False, False, False, True, True]


def test_a_mistyped_claim_is_told_and_kept(board: Board) -> None:
    path = board.claim("fedless1.127.0.0.1:1.mistyped")
    board.network()
    assert not set_up(board.machine, lambda _: None, attempts=1)
    assert "mistyped or incomplete" in board.status
    assert path.exists()
    assert "mistyped." not in board.status, "the claim itself is not told"


def test_remarks_and_windows_line_ends_around_a_claim_are_no_part_of_it(board: Board) -> None:
    board.put("/boot/firmware/fedless-claim.txt", "# device-3, good until ...\r\n\r\nfedless1.abc \r\n")
    assert steps.claim_text(board.machine) == "fedless1.abc"


def test_an_aggregator_that_is_away_is_tried_again(board: Board, free_port: object) -> None:
    from fedless.protocol.claim import Claim, secret_text

    assert callable(free_port)
    board.network()
    board.claim(Claim(f"127.0.0.1:{free_port()}", "a" * 26, secret_text(bytes(16))).text)
    pauses: list[float] = []
    assert not join_only(board.machine, pauses.append, attempts=1)
    assert pauses == [20]
    assert "The aggregator does not answer." in board.status


def test_a_wrong_wifi_password_is_told_and_corrected_on_the_boot_partition(board: Board) -> None:
    board.claim("fedless1.x")
    board.network(carrier=False, route=False)
    board.put("/sys/class/net/wlan0/phy80211/name", "phy0")
    board.put("/boot/firmware/fedless.toml", BoardSettings("", WIFI).text())
    board.said |= {"wpa_cli": Answer(0, "wpa_state=SCANNING\n"), "journalctl": Answer(0, WRONG_KEY)}
    pauses: list[float] = []

    def corrected(seconds: float) -> None:
        pauses.append(seconds)
        right = Wifi(WIFI.ssid, "the right one", WIFI.country)
        board.put("/boot/firmware/fedless.toml", BoardSettings("", right).text())

    assert not set_up(board.machine, corrected, attempts=2)
    assert "The Wi-Fi password is wrong." in board.status
    assert WIFI.secret not in board.status + board.text("/run/issue.d/fedless.issue")
    assert len([c for c in board.called("systemctl") if "restart" in c]) == 2, "it took the new password"
    assert pauses == [30, 30]


def test_a_board_that_is_none_of_ours_is_named_and_goes_on(board: Board) -> None:
    board.put("/proc/device-tree/model", "Orange Pi 5\0")
    board.put("/usr/sbin/sshd", "")
    board.network()
    assert not set_up(board.machine, lambda _: None, attempts=1)
    assert "This board (Orange Pi 5) is none that the image was made for" in board.status
    assert "no claim" in board.status, "what is in the way is told as on any board"
    assert board.called("ssh-keygen")


@pytest.mark.parametrize(
    ("code", "sentence", "blinks"),
    [
        (Code.CLOCK_WRONG, "The clock is wrong.", 6),
        (Code.CLAIM_EXPIRED, "The claim has expired.", 4),
        (
            Code.FOREIGN_CERTIFICATE,
            "The aggregator's certificate is not the one that this board was given.",
            5,
        ),
    ],
)
def test_what_joining_answers_is_told_with_its_own_blinks(
    board: Board, code: Code, sentence: str, blinks: int
) -> None:
    trouble = plan.of_code(code)
    show(board.machine, Standing(trouble))
    assert sentence in board.status
    assert f"The LED blinks {blinks} times between pauses." in board.status


def test_looking_before_it_has_joined_tells_nothing(board: Board) -> None:
    assert look(board.machine) is None
    assert not (board.root / "boot/firmware/fedless-status.txt").exists()


def test_a_note_that_a_power_cut_emptied_is_written_anew(board: Board) -> None:
    board.put("/var/lib/fedless-setup/claim.json", "")
    board.claim("fedless1.127.0.0.1:1.mistyped")
    assert steps.join(board.machine).trouble is Trouble.CLAIM_MALFORMED
    assert json.loads(board.text("/var/lib/fedless-setup/claim.json"))["key_before"] == ""
