"""The kit plugin authors and optkit's own tests use: what every pass and every runner must satisfy, as assertions."""

from __future__ import annotations

from optkit.testing.passes import assert_pass_contract
from optkit.testing.runners import assert_runner_contract
from optkit.testing.samples import ListSamples

__all__ = ["ListSamples", "assert_pass_contract", "assert_runner_contract"]
