"""*Pure.* What a client does with its data: the local optimiser and the numbers of its rule. A part of `messages`.

By itself, since an instance needs no other message, and its imports are a part of every cold start.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Optimizer(StrEnum):
    """The client's local optimiser."""

    SGD = "sgd"
    MOMENTUM = "momentum"
    ADAM = "adam"


@dataclass(frozen=True)
class ClientRule:
    """What a client does with its data: the local optimiser and its numbers.

    `clip_norm` clips each gradient's L2 norm (0: off). `proximal_mu` is FedProx's mu
    (Li et al. 2020; 0: off). `max_steps` ends training early (0: off). `seed` orders the examples.
    What a strategy adds: `normalized` divides the update by what its steps add up to (FedNova, Wang et al. 2020),
    `fair_q` (0: off) weighs it by the loss before training, up to `fair_limit` (q-FedAvg, Li et al. 2020), `control`
    corrects each step by control variates and reports their change behind the update (SCAFFOLD, Karimireddy et al.
    2020).
    With `example_noise` above 0 each step is one of DP-SGD (Abadi et al. 2016): every example's gradient is clipped to
    an L2 norm of `example_clip`, and the sum gets Gaussian noise of `example_noise` times that.
    `personal_epochs`, of a task with personal parameters: so many local epochs train these alone, before `local_epochs`
    of the shared ones alone (FedRep, Collins et al. 2021); 0: all are trained together (FedPer, Arivazhagan et al.
    2019).
    """

    optimizer: Optimizer = Optimizer.SGD
    learning_rate: float = 0.01
    momentum: float = 0.9
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-7
    weight_decay: float = 0.0
    clip_norm: float = 0.0
    proximal_mu: float = 0.0
    local_epochs: int = 1
    max_steps: int = 0
    seed: int = 0
    normalized: bool = False
    fair_q: float = 0.0
    fair_limit: float = 0.0
    control: bool = False
    example_clip: float = 0.0
    example_noise: float = 0.0
    personal_epochs: int = 0

    @property
    def vectors(self) -> int:
        """How many vectors an update has: itself, and the change of its control variate."""
        return 2 if self.control else 1
