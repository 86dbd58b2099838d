"""Differentiable operations that convert to TFLite's builtin ones, forward and backward, with static shapes.

TensorFlow's own gradients of ReLU, pooling and convolution have no TFLite operation, and some products become
slow ones. Here a convolution is im2col and a matrix product in both directions, a pool is four taps, and
every product becomes BATCH_MATMUL, which XNNPACK runs at numpy's speed. Tensors have at most four dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

Tensor = Any
"""A `tf.Tensor`; tensorflow has no types."""
Gradient = Callable[..., Any]


def matmul(x: Tensor, w: Tensor, *, repeated: bool = False) -> Tensor:
    """x [M, K] times w [K, N], float32. `repeated`: the same w is used many times, as in a recurrence."""

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def run(x: Tensor, w: Tensor) -> tuple[Tensor, Gradient]:
        def gradient(dy: Tensor) -> tuple[Tensor, Tensor]:
            return _input_gradient(dy, w), _weight_gradient(x, dy)

        # XNNPACK packs the right side at every product: w turned once goes to the left.
        return _turned_product(tf.transpose(w), x) if repeated else _product(x, w), gradient

    return run(x, w)


def recurrence(z: Tensor, w: Tensor, states: list[Tensor]) -> Tensor:
    """Z [T * B, N] unchanged; in the backward pass, w [K, N] gets the gradient of all steps' products at once.

    For a loop that adds `matmul(states[t - 1], stop_gradient(w))` to step t of z, with states [B, K] that the
    caller appends: what arrives here as z's gradient is that of the sums. One large product instead of T
    small ones and T sums of w's size.
    """

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def run(z: Tensor, w: Tensor) -> tuple[Tensor, Gradient]:
        def gradient(dz: Tensor) -> tuple[Tensor, Tensor]:
            b = states[0].shape[0]
            if len(states) == 1:
                return dz, 0.0 * w
            later = tf.slice(dz, [b, 0], [dz.shape[0] - b, dz.shape[1]])
            return dz, _weight_gradient(tf.concat(states[:-1], 0), later)

        return tf.identity(z), gradient

    return run(z, w)


def relu(x: Tensor) -> Tensor:
    """max(x, 0), any shape."""
    return tf.maximum(x, 0.0)


def conv2d(x: Tensor, w: Tensor) -> Tensor:
    """Valid convolution, stride 1: x [B, H, W, C] with w [K, L, C, F] -> [B, H-K+1, W-L+1, F]."""
    b, high, wide, c = x.shape
    k, kw, _, f = w.shape
    rows, columns, depth = high - k + 1, wide - kw + 1, k * kw * c

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def run(x: Tensor, w: Tensor) -> tuple[Tensor, Gradient]:
        patches = tf.reshape(_im2col(x, k, kw), [b * rows * columns, depth])
        kernel = tf.reshape(w, [depth, f])

        def gradient(dy: Tensor) -> tuple[Tensor, Tensor]:
            dy = tf.reshape(dy, [b * rows * columns, f])
            dp = tf.reshape(_input_gradient(dy, kernel), [b, rows, columns, depth])
            return _col2im(dp, k, kw), tf.reshape(_weight_gradient(patches, dy), [k, kw, c, f])

        return tf.reshape(_product(patches, kernel), [b, rows, columns, f]), gradient

    return run(x, w)


def max_pool(x: Tensor, size: int) -> Tensor:
    """[B, H, W, C] -> [B, H // size, W // size, C]; of several largest taps, the first gets the gradient.

    That is TensorFlow's rule; it matters, because images have large areas of equal values.
    """
    x = _cropped(x, size)

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def run(x: Tensor) -> tuple[Tensor, Gradient]:
        taps = _taps(x, size)
        largest = taps[0]
        for tap in taps[1:]:
            largest = tf.maximum(largest, tap)

        def gradient(dy: Tensor) -> Tensor:
            left = tf.reshape(dy, largest.shape)
            parts = []
            for tap in taps[:-1]:
                parts.append(tf.where(tap >= largest, left, 0.0 * left))
                left = left - parts[-1]
            return _untapped([*parts, left], x.shape, size)

        return _pooled(largest, x.shape, size), gradient

    return run(x)


def average_pool(x: Tensor, size: int) -> Tensor:
    """[B, H, W, C] -> [B, H // size, W // size, C]."""
    x = _cropped(x, size)

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def run(x: Tensor) -> tuple[Tensor, Gradient]:
        taps = _taps(x, size)
        total = taps[0]
        for tap in taps[1:]:
            total = total + tap

        def gradient(dy: Tensor) -> Tensor:
            share = tf.reshape(dy, total.shape) * (1.0 / size**2)
            return _untapped([share] * size**2, x.shape, size)

        return _pooled(total * (1.0 / size**2), x.shape, size), gradient

    return run(x)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """[M, K] times [K, N] or [1, K, N], as BATCH_MATMUL."""
    right = b if b.shape.rank == 3 else tf.reshape(b, [1, *b.shape])  # noqa: PLR2004
    product = tf.matmul(tf.reshape(a, [1, *a.shape]), right)
    return tf.reshape(product, [a.shape[0], right.shape[2]])


def _turned_product(a: Tensor, x: Tensor) -> Tensor:
    """(a x^T)^T for a [N, K], x [M, K]: [M, N], with the larger factor on the left, where it is not packed."""
    return tf.transpose(_product(a, tf.transpose(x)))


def _input_gradient(dy: Tensor, w: Tensor) -> Tensor:
    """dy w^T for dy [M, N], w [K, N], by the cheaper transposes: that of w, or those of dy and the result."""
    (m, n), k = dy.shape, w.shape[0]
    if m * (n + k) <= n * k:
        return _turned_product(w, dy)
    return _product(dy, _transposed(w))


def _weight_gradient(x: Tensor, dy: Tensor) -> Tensor:
    """x^T dy for x [M, K], dy [M, N], by the cheaper transposes: that of x, or those of dy and the result."""
    (m, k), n = x.shape, dy.shape[1]
    if m * k <= n * (m + k):
        return _product(tf.transpose(x), dy)
    return tf.transpose(_product(tf.transpose(dy), x))


def _transposed(w: Tensor) -> Tensor:
    """[K, N] -> [1, N, K]; the reshape keeps the converter from folding it into a slow FULLY_CONNECTED."""
    turned = tf.transpose(w)
    return tf.reshape(turned, [1, *turned.shape])


def _im2col(x: Tensor, k: int, kw: int) -> Tensor:
    """[B, H, W, C] -> [B, H-K+1, W-L+1, K*L*C]: along the width first, so that long runs are copied."""
    b, high, wide, c = x.shape
    rows, columns = high - k + 1, wide - kw + 1
    across = tf.concat([tf.slice(x, [0, 0, j, 0], [b, high, columns, c]) for j in range(kw)], 3)
    return tf.concat([tf.slice(across, [0, i, 0, 0], [b, rows, columns, kw * c]) for i in range(k)], 3)


def _col2im(p: Tensor, k: int, kw: int) -> Tensor:
    """The transpose of `_im2col`: along the height first, then along the width."""
    across = _shifted_sum(tf.split(p, k, 3), 1)
    return _shifted_sum(tf.split(across, kw, 3), 2)


def _shifted_sum(parts: list[Tensor], axis: int) -> Tensor:
    """The sum of the parts, the i-th moved by i along `axis`."""
    total = None
    for i, part in enumerate(parts):
        padding = [[0, 0]] * 4
        padding[axis] = [i, len(parts) - 1 - i]
        moved = tf.pad(part, padding)
        total = moved if total is None else total + moved
    return total


def _cropped(x: Tensor, size: int) -> Tensor:
    """Without the last rows and columns that do not fill a window."""
    b, high, wide, c = x.shape
    if high % size == 0 and wide % size == 0:
        return x
    return tf.slice(x, [0, 0, 0, 0], [b, high // size * size, wide // size * size, c])


def _taps(x: Tensor, size: int) -> list[Tensor]:
    """The `size`^2 elements of each window, row by row, each [B*H/size, 1, W/size, C]."""
    b, high, wide, c = x.shape
    lines = tf.reshape(x, [b * high // size, size, wide // size, size * c])
    return [tap for line in tf.split(lines, size, 1) for tap in tf.split(line, size, 3)]


def _pooled(tap: Tensor, shape: Any, size: int) -> Tensor:  # noqa: ANN401  (a tf.TensorShape)
    b, high, wide, c = shape
    return tf.reshape(tap, [b, high // size, wide // size, c])


def _untapped(taps: list[Tensor], shape: Any, size: int) -> Tensor:  # noqa: ANN401  (a tf.TensorShape)
    """The inverse of `_taps`."""
    lines = [tf.concat(taps[at : at + size], 3) for at in range(0, len(taps), size)]
    return tf.reshape(tf.concat(lines, 1), shape)
