"""The workstation's side: a TensorFlow model becomes a signed function for devices.

`build` makes a function directory from a `model.Model` (layers of `layers` and `recurrent`, or a Keras model
through `translate`), `check` is the author's gate, `sign` packs and signs. Only `sign` works without
tensorflow.
"""
