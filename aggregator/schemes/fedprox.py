"""All in one with FedProx (Li et al., MLSys 2020): local training is pulled back towards the round's first weights."""

from __future__ import annotations

import msgspec

from aggregator.schemes.base import Stage
from aggregator.schemes.options import options_of
from aggregator.schemes.plans import SingleStage, all_rounds, overridden_faults
from models.wire.job import JobSpec, NonNegative


class FedProxOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`mu` times half the squared distance is added to the loss."""

    mu: NonNegative = 0.01


class FedProx(SingleStage):
    """A single split, "merged"."""

    name = "fedprox"
    options: type[msgspec.Struct] = FedProxOptions

    def faults(self, spec: JobSpec) -> list[str]:
        """There is one place for mu."""
        return super().faults(spec) + overridden_faults(spec, {"prox_mu": "takes its option 'mu'"})

    def first(self, spec: JobSpec, agents: tuple[str, ...]) -> Stage:
        """All rounds for all tasks together."""
        mu = options_of(spec, FedProxOptions).mu
        return all_rounds(spec, msgspec.structs.replace(spec.train, prox_mu=mu))


SCHEME = FedProx()
