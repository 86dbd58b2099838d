"""Make train.npz and test.npz of a play: windows of characters, the character after each, and who speaks it.

    python examples/shakespeare/windows.py TEXT [--out DIR] [--speakers 10] [--length 40] [--step 10]

TEXT is plain or gzipped; blocks are divided by an empty line, and a block's first line is `NAME:`. Of each speaker the
first nine tenths of what is said are for training, the rest for the test, with no character in both. Those who say most
are taken. The arrays: x uint8 [N, length], y int32 [N], speaker int32 [N]; the same input gives the same arrays.
"""

from __future__ import annotations

import argparse
import gzip
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FIRST, LAST, UNKNOWN = 32, 126, ord("?")
"""The printable characters of ASCII; whatever else is not a line feed becomes a question mark."""
HELD_OUT = 0.1
Arrays = Mapping[str, NDArray[Any]]


def numbered(text: str) -> NDArray[np.uint8]:
    """0 for a line feed, 1 to 95 for the printable characters of ASCII."""
    codes = np.array([ord(char) for char in text], np.int64)
    printable = np.where((codes >= FIRST) & (codes <= LAST), codes, UNKNOWN) - FIRST + 1
    return np.where(codes == ord("\n"), 0, printable).astype(np.uint8)


def by_speaker(text: str) -> dict[str, str]:
    """What each speaker says, in the text's order; blocks without a speaker's line are left out."""
    said: defaultdict[str, str] = defaultdict(str)
    for block in text.replace("\r\n", "\n").split("\n\n"):
        speaker, found, words = block.strip("\n").partition(":\n")
        if found and "\n" not in speaker:
            said[speaker] += words + "\n"
    return dict(said)


def windows(codes: NDArray[np.uint8], owner: int, length: int, step: int) -> Arrays:
    """Every `step`-th window of `length` characters, with the character after it."""
    starts = np.arange(0, len(codes) - length, step)
    return {
        "x": codes[starts[:, None] + np.arange(length)],
        "y": codes[starts + length].astype(np.int32),
        "speaker": np.full(len(starts), owner, np.int32),
    }


def make(text: str, speakers: int, length: int, step: int) -> tuple[Arrays, Arrays, list[str]]:
    """Training part, test part, and the names in the order of their numbers."""
    said = by_speaker(text)
    names = sorted(said, key=lambda name: (-len(said[name]), name))[:speakers]
    parts: tuple[list[Arrays], list[Arrays]] = ([], [])
    for owner, name in enumerate(names):
        codes = numbered(said[name])
        cut = round(len(codes) * (1 - HELD_OUT))
        for part, piece in zip(parts, (codes[:cut], codes[cut:]), strict=True):
            part.append(windows(piece, owner, length, step))
    train, test = ({key: np.concatenate([one[key] for one in part]) for key in part[0]} for part in parts)
    return train, test, names


def main() -> None:
    """Read the text, write both files."""
    parser = argparse.ArgumentParser(description="Make the example's arrays from a play.")
    parser.add_argument("text", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "data")
    parser.add_argument("--speakers", type=int, default=10)
    parser.add_argument("--length", type=int, default=40)
    parser.add_argument("--step", type=int, default=10)
    given = parser.parse_args()
    raw = given.text.read_bytes()
    text = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode("utf-8")
    train, test, names = make(text, given.speakers, given.length, given.step)
    if not len(train["y"]) or not len(test["y"]):
        sys.exit(
            f"{given.text}: no speaker says enough for a window of {given.length} characters in both parts."
        )
    given.out.mkdir(parents=True, exist_ok=True)
    for name, arrays in (("train", train), ("test", test)):
        np.savez_compressed(given.out / f"{name}.npz", allow_pickle=False, **arrays)
    counts = np.bincount(train["speaker"], minlength=len(names))
    for name, count in zip(names, counts, strict=True):
        print(f"{count:6} {name}")
    print(
        f"{len(names)} speakers, {len(train['y'])} windows to train on, {len(test['y'])} to test on, in {given.out}"
    )


if __name__ == "__main__":
    main()
