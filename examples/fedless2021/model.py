"""FedLess' MNIST CNN (arXiv 2111.03396, section 5): 582,026 parameters, trained in batches of 10.

    fedless function build examples/fedless2021/model.py -o examples/fedless2021/function --name fedless2021-cnn

made `function/`. The layers are those of examples/mnist; the batch is part of the function, so this is one of its own.
"""

from __future__ import annotations

from fedless.authoring.layers import Conv2D, Dense, Flatten, MaxPool2D
from fedless.authoring.model import Model
from fedless.protocol.manifest import Input


def model() -> Model:
    """Two convolutions, two pools, two dense layers; the softmax is in the loss."""
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
        input=Input("x", (28, 28, 1), "float32", 0.0, 1.0),
        batch=10,
    )
