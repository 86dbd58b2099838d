"""The next character of a play, after forty: an embedding, an LSTM of 64 units: 25,696 parameters.

`fedless function build examples/shakespeare/model.py --name shakespeare-lstm -o DIR` builds `model()`, and
`--attribute paper` FedLess' model (arXiv 2111.03396): two LSTMs of 256 units after 80 characters, 818,402 parameters
with its 82 characters, a few more here. Recurrences are unrolled, so that building the large one takes a minute or two.
"""

from __future__ import annotations

from fedless.authoring.layers import Dense
from fedless.authoring.model import Model
from fedless.authoring.recurrent import LSTM, Embedding
from fedless.protocol.manifest import Input

CHARACTERS = 96
"""Line feed and the 95 printable ones of ASCII, as windows.py numbers them."""


def model() -> Model:
    """For small boards: a step on 16 windows takes milliseconds."""
    return Model(
        [Embedding(CHARACTERS, 8), LSTM(64), Dense(CHARACTERS)],
        input=Input("x", (40,), "int32", 0.0, CHARACTERS - 1.0),
        batch=16,
    )


def paper() -> Model:
    """FedLess' size; give windows.py `--length 80`."""
    return Model(
        [Embedding(CHARACTERS, 8), LSTM(256, return_sequences=True), LSTM(256), Dense(CHARACTERS)],
        input=Input("x", (80,), "int32", 0.0, CHARACTERS - 1.0),
        batch=32,
    )
