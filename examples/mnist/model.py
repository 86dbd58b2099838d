"""The two MNIST models of the example.

`fedless function build examples/mnist/model.py -o DIR` builds `model()`, `--attribute mlp` the other one.
The CNN is that of FedLess (2021): 582,026 parameters.
"""

from __future__ import annotations

from fedless.authoring.layers import Conv2D, Dense, Flatten, MaxPool2D
from fedless.authoring.model import Model
from fedless.protocol.manifest import Input

IMAGE = Input("x", (28, 28, 1), "float32", 0.0, 1.0)


def model() -> Model:
    """Two convolutions, two pools, two dense layers."""
    return Model(
        [
            Conv2D(32, 5, activation="relu"),
            MaxPool2D(2),
            Conv2D(64, 5, activation="relu"),
            MaxPool2D(2),
            Flatten(),
            Dense(512, activation="relu"),
            Dense(10),
        ],
        input=IMAGE,
        batch=32,
    )


def mlp() -> Model:
    """One hidden layer: 101,770 parameters, for small boards and quick tests."""
    return Model([Flatten(), Dense(128, activation="relu"), Dense(10)], input=IMAGE, batch=32)
