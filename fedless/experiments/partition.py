"""*Pure.* Who gets which examples: label-sorted shards as FedLess dealt them, evenly, Dirichlet, or as they came.

Every function takes the labels int[N], the number of clients and a seed, and returns one array of distinct
indices int64[n_i] for each client, sorted; no index occurs twice over all clients, and no client is left
empty. The same arguments give the same answer on every machine (numpy's PCG64).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedless.protocol.errors import Code, LocalError

Indices = NDArray[np.int64]
Labels = NDArray[np.integer[Any]]
KINDS = ("shards", "iid", "dirichlet", "natural")
_ATTEMPTS = 100


@dataclass(frozen=True)
class Partition:
    """The rule (one of `KINDS`) and its number: `shards_per_client` for shards, `alpha` for dirichlet.

    `groups_apart`: the groups of clients see different labels; the rule then holds within each group.
    """

    kind: str = "iid"
    shards_per_client: int = 2
    alpha: float = 0.5
    groups_apart: bool = False


def divide(partition: Partition, labels: Labels, clients: int, seed: int) -> list[Indices]:
    """The clients' indices by the rule that `partition` names.

    Raises `LocalError(DATA_EMPTY)` if there are too few examples to give every client one.
    """
    if labels.ndim != 1 or labels.size < clients:
        detail = (
            f"{clients} clients need a label vector of at least {clients} examples, found {labels.shape}."
        )
        raise LocalError(Code.DATA_EMPTY, detail)
    if partition.kind == "shards":
        return shards(labels, clients, partition.shards_per_client, seed)
    if partition.kind == "dirichlet":
        return dirichlet(labels, clients, partition.alpha, seed)
    if partition.kind == "natural":
        return natural(labels, clients, seed)
    return iid(labels, clients, seed)


def divide_groups(partition: Partition, labels: Labels, counts: Sequence[int], seed: int) -> list[Indices]:
    """As `divide` for groups of `counts` clients, one after another.

    Apart: sorted by label and cut between the groups in proportion to their clients, so that each group has labels
    that others have not. Raises `LocalError(DATA_EMPTY)` as `divide`.
    """
    if not partition.groups_apart:
        return divide(partition, labels, sum(counts), seed)
    shuffled = np.random.default_rng(seed).permutation(labels.size)
    ordered = shuffled[np.argsort(labels[shuffled], kind="stable")]
    ends = [labels.size * sum(counts[: i + 1]) // sum(counts) for i in range(len(counts))]
    found: list[Indices] = []
    for count, theirs in zip(counts, np.split(ordered, ends[:-1]), strict=True):
        mine = np.sort(theirs).astype(np.int64)
        found += [mine[part] for part in divide(partition, labels[mine], count, seed)]
    return found


def shards(labels: Labels, clients: int, shards_per_client: int, seed: int) -> list[Indices]:
    """Sorted by label, cut into clients x `shards_per_client` shards of one size, dealt out at random.

    That is FedLess's non-IID split of MNIST (arXiv 2111.03396: 600 shards of 100 images) and, with two shards
    for each client, McMahan et al. 2017's. Examples that fill no whole shard are left out.
    """
    count = clients * shards_per_client
    size = labels.size // count
    if size == 0:
        detail = f"{clients} clients x {shards_per_client} shards need {count} examples, found {labels.size}."
        raise LocalError(Code.DATA_EMPTY, detail)
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(
        labels.size
    )  # which examples of a label share a shard is chance, not file order
    ordered = shuffled[np.argsort(labels[shuffled], kind="stable")]
    dealt = rng.permutation(count).reshape(clients, shards_per_client)
    blocks = ordered[: count * size].reshape(count, size)
    return [np.sort(blocks[mine].reshape(-1)).astype(np.int64) for mine in dealt]


def iid(labels: Labels, clients: int, seed: int) -> list[Indices]:
    """A random permutation cut into `clients` parts whose sizes differ by at most one."""
    order = np.random.default_rng(seed).permutation(labels.size)
    return [np.sort(part).astype(np.int64) for part in np.array_split(order, clients)]


def natural(labels: Labels, clients: int, seed: int) -> list[Indices]:
    """As the data came about: `labels` say whose an example is (a writer, a speaker), and nobody's are divided.

    The owners are shuffled and dealt out in turn, one or more for each client, as LEAF has one (Caldas et al. 2018).
    Raises `LocalError(DATA_EMPTY)` if there are fewer owners than clients.
    """
    owners = np.random.default_rng(seed).permutation(np.unique(labels))
    if owners.size < clients:
        detail = f"{clients} clients need the examples of at least {clients} owners, found {owners.size}."
        raise LocalError(Code.DATA_EMPTY, detail, fix="Use fewer clients, or name the owners in data.label.")
    return [np.flatnonzero(np.isin(labels, owners[place::clients])) for place in range(clients)]


def dirichlet(labels: Labels, clients: int, alpha: float, seed: int) -> list[Indices]:
    """Each label's examples divided in proportions drawn from Dirichlet(alpha) (Hsu et al. 2019, per label).

    Small `alpha`: few labels for each client. Draws that leave a client empty are repeated, at most 100
    times; then `LocalError(DATA_EMPTY)`.
    """
    rng = np.random.default_rng(seed)
    for _ in range(_ATTEMPTS):
        parts: list[list[Indices]] = [[] for _ in range(clients)]
        for label in np.unique(labels):
            mine = rng.permutation(np.flatnonzero(labels == label))
            cuts = (np.cumsum(rng.dirichlet(np.full(clients, alpha)))[:-1] * mine.size).astype(np.int64)
            for part, piece in zip(parts, np.split(mine, cuts), strict=True):
                part.append(piece)
        joined = [np.sort(np.concatenate(part)).astype(np.int64) for part in parts]
        if all(part.size for part in joined):
            return joined
    detail = f"Dirichlet({alpha:g}) leaves one of {clients} clients empty with {labels.size} examples."
    raise LocalError(Code.DATA_EMPTY, detail, fix="Use a larger alpha, more examples or fewer clients.")
