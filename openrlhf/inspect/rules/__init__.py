"""What may go wrong in a run, one function each: evidence → a finding, None, or why nothing can be said.

They stand in the files of this folder by what they speak of. A finding names its numbers and samples to look at.
"""

from __future__ import annotations

from openrlhf.inspect.rules import hacking, learning, policy, samples
from openrlhf.inspect.rules.finding import Rule

RULES: dict[str, Rule] = {
    "not_finite": learning.not_finite,
    "invalid_rewards": samples.invalid_rewards,
    "engine_mismatch": policy.engine_mismatch,
    "kl_runaway": policy.kl_runaway,
    "entropy_collapse": policy.entropy_collapse,
    "learning_rate_too_high": learning.learning_rate_too_high,
    "learning_rate_too_low": learning.learning_rate_too_low,
    "length_hacking": hacking.length_hacking,
    "format_hacking": hacking.format_hacking,
    "dead_groups": samples.dead_groups,
    "truncation": samples.truncation,
    "loss_rises": learning.loss_rises,
}
