"""Losses: from predicted costs and what is known of an item to a number, through an oracle.

| known of an item             | losses                                                                       |
|------------------------------|------------------------------------------------------------------------------|
| its decision                 | FenchelYoung; from a pool: NCE, MAP                                          |
| its true costs               | SPOPlus, PerturbationGradient, Regret; from a pool: Pointwise, Pairwise, Listwise |

All are used alike: `loss = SPOPlus(oracle)`, `loss(costs, true_costs)`, `loss.with_solution(costs, true_costs)`; a target may
be `Solved(true_costs, decisions)`, for any of them.
"""

from bigrad.losses.base import AbstractLoss, Evaluated, Solved
from bigrad.losses.contrastive import MAP, NCE
from bigrad.losses.directional import PerturbationGradient
from bigrad.losses.fenchel_young import FenchelYoung
from bigrad.losses.pool import Pool
from bigrad.losses.ranking import Listwise, Pairwise, Pointwise
from bigrad.losses.regret import Regret
from bigrad.losses.spo import SPOPlus

__all__ = [
    "MAP",
    "NCE",
    "AbstractLoss",
    "Evaluated",
    "FenchelYoung",
    "Listwise",
    "Pairwise",
    "PerturbationGradient",
    "Pointwise",
    "Pool",
    "Regret",
    "SPOPlus",
    "Solved",
]
