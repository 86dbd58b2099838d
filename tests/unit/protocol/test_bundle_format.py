"""The bundle's container: deterministic, signed, and refused by name when it is anything else."""

from __future__ import annotations

import hashlib
import io
import struct
import zipfile

import pytest

from fedless.protocol import bundle_format, crypto
from fedless.protocol.errors import Code, PeerError

KEY = bytes(range(32))
PUBLIC = crypto.ed25519_public(KEY)
PUBLISHERS = {crypto.key_id(PUBLIC): PUBLIC}
FILES = {"function.toml": b"format = 1\n", "model.tflite": b"\0" * 1000, "pkg/provider.py": b"x = 1\n"}


def zipped(entries: list[tuple[zipfile.ZipInfo | str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry, data in entries:
            archive.writestr(entry, data)
    return buffer.getvalue()


def refusal(archive: bytes) -> Code:
    with pytest.raises(PeerError) as caught:
        bundle_format.unpack(archive)
    return caught.value.code


def test_what_is_packed_is_unpacked() -> None:
    header = bundle_format.read_header(bundle_format.pack(FILES, KEY))
    bundle_format.verify(header, PUBLISHERS)
    assert bundle_format.unpack(header.archive) == FILES


def test_the_same_files_give_the_same_bytes_in_any_order() -> None:
    turned = dict(reversed(FILES.items()))
    assert bundle_format.pack(FILES, KEY) == bundle_format.pack(turned, KEY)


def test_the_layout_is_as_documented() -> None:
    bundle = bundle_format.pack(FILES, KEY)
    assert bundle[:16] == b"fedless-bundle1\n"
    assert bundle[16:32] == hashlib.sha256(PUBLIC).digest()[:16]
    assert struct.unpack(">Q", bundle[96:104]) == (len(bundle) - 104,)
    signed = b"fedless-bundle\0" + hashlib.sha256(bundle[104:]).digest()
    assert crypto.ed25519_verify(PUBLIC, bundle[32:96], signed)
    assert bundle_format.digest(bundle) == hashlib.sha256(bundle).hexdigest()


def test_forged_signature_is_refused() -> None:
    bundle = bytearray(bundle_format.pack(FILES, KEY))
    bundle[40] ^= 1
    with pytest.raises(PeerError) as caught:
        bundle_format.verify(bundle_format.read_header(bytes(bundle)), PUBLISHERS)
    assert caught.value.code is Code.BUNDLE_FORGED


def test_changed_archive_is_refused() -> None:
    bundle = bytearray(bundle_format.pack(FILES, KEY))
    bundle[-1] ^= 1
    with pytest.raises(PeerError) as caught:
        bundle_format.verify(bundle_format.read_header(bytes(bundle)), PUBLISHERS)
    assert caught.value.code is Code.BUNDLE_FORGED


def test_unknown_publisher_is_refused() -> None:
    bundle = bundle_format.pack(FILES, bytes(32))
    with pytest.raises(PeerError) as caught:
        bundle_format.verify(bundle_format.read_header(bundle), PUBLISHERS)
    assert caught.value.code is Code.BUNDLE_PUBLISHER


@pytest.mark.parametrize("cut", [0, 10, 103, 104, 300, -1])
def test_truncated_bundle_is_refused(cut: int) -> None:
    with pytest.raises(PeerError) as caught:
        bundle_format.read_header(bundle_format.pack(FILES, KEY)[:cut])
    assert caught.value.code is Code.BUNDLE_MALFORMED


def test_bytes_behind_the_archive_are_refused() -> None:
    with pytest.raises(PeerError) as caught:
        bundle_format.read_header(bundle_format.pack(FILES, KEY) + b"x")
    assert caught.value.code is Code.BUNDLE_MALFORMED


@pytest.mark.parametrize(
    "name",
    [
        "../evil.py",
        "/etc/passwd",
        "pkg/../../evil.py",
        "pkg//evil.py",
        "./evil.py",
        "a\\..\\evil.py",
        "C:evil.py",
        "pkg/",
        "a\nb.py",
        ".hidden/x.py",
        "x" * 101,
        "a/" * 9 + "x.py",
    ],
)
def test_escaping_path_is_refused(name: str) -> None:
    assert refusal(zipped([("function.toml", b""), (name, b"evil")])) is Code.BUNDLE_PATH


def test_name_with_a_hidden_end_is_refused() -> None:
    archive = zipped([("function.toml", b""), ("okayX.py", b"")]).replace(b"okayX.py", b"okay\0.py")
    assert refusal(archive) is Code.BUNDLE_PATH


@pytest.mark.parametrize("kind", [0o120777, 0o020666, 0o040755])
def test_link_device_or_folder_is_refused(kind: int) -> None:
    entry = zipfile.ZipInfo("link")
    entry.create_system = 3
    entry.external_attr = kind << 16
    assert refusal(zipped([("function.toml", b""), (entry, b"/etc/passwd")])) is Code.BUNDLE_PATH


def test_name_that_occurs_twice_is_refused() -> None:
    archive = zipped([("function.toml", b""), ("a.py", b"1"), ("b.py", b"2")]).replace(b"b.py", b"a.py")
    assert refusal(archive) is Code.BUNDLE_MALFORMED


def test_name_that_is_file_and_folder_is_refused() -> None:
    assert refusal(zipped([("function.toml", b""), ("a", b"1"), ("a/b", b"2")])) is Code.BUNDLE_MALFORMED


def test_archive_without_a_manifest_is_refused() -> None:
    assert refusal(zipped([("model.tflite", b"")])) is Code.BUNDLE_MALFORMED


@pytest.mark.parametrize("data", [b"", b"not a zip", b"PK\x05\x06" + b"\0" * 18])
def test_what_is_no_archive_is_refused(data: bytes) -> None:
    assert refusal(data) is Code.BUNDLE_MALFORMED


def test_damaged_content_is_refused() -> None:
    archive = bytearray(zipped([("function.toml", bytes(range(256)) * 50)]))
    archive[60] ^= 0xFF
    assert refusal(bytes(archive)) is Code.BUNDLE_MALFORMED


def test_too_many_files_are_refused() -> None:
    entries: list[tuple[zipfile.ZipInfo | str, bytes]] = [("function.toml", b"")]
    entries += [(f"f{number}.py", b"") for number in range(bundle_format.MAX_FILES)]
    assert refusal(zipped(entries)) is Code.BUNDLE_TOO_LARGE


def test_archive_that_inflates_beyond_the_bound_is_refused_unread() -> None:
    size = bundle_format.MAX_FILE_BYTES + 1
    archive = bytearray(zipped([("function.toml", b""), ("bomb", b"\0" * 1000)]))
    at = archive.rindex(b"PK\x01\x02") + 24  # the central directory's record of `bomb`: its unpacked size
    archive[at : at + 4] = struct.pack("<I", size)
    assert refusal(bytes(archive)) is Code.BUNDLE_TOO_LARGE


def test_archive_that_inflates_beyond_what_it_says_is_refused() -> None:
    archive = bytearray(zipped([("function.toml", b""), ("bomb", b"\0" * 1_000_000)]))
    at = archive.rindex(b"PK\x01\x02") + 24
    archive[at : at + 4] = struct.pack("<I", 10)
    assert refusal(bytes(archive)) is Code.BUNDLE_MALFORMED


def test_nobody_can_pack_what_nobody_takes() -> None:
    with pytest.raises(PeerError) as caught:
        bundle_format.pack({"function.toml": b"", "../a": b""}, KEY)
    assert caught.value.code is Code.BUNDLE_PATH


def test_the_header_does_not_show_the_archive() -> None:
    header = bundle_format.read_header(bundle_format.pack(FILES, KEY))
    assert "archive" not in repr(header)
