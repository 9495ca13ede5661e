"""An advantage estimator of your own: ``--advantage_estimator examples/python/estimator.py:above_average``.

Only the samples that beat the mean of their group teach, by how much they beat it. The others have advantage 0. The
idea is that of Dong et al., arXiv:2304.06767, who keep the best samples and imitate them.
"""

from __future__ import annotations

from torch import Tensor

from openrlhf.algorithms.advantages import AdvantageInputs, Estimator, token_rewards
from openrlhf.algorithms.masked import group_mean
from openrlhf.algorithms.returns import discounted_returns


def best_of_group(inputs: AdvantageInputs) -> tuple[Tensor, Tensor]:
    """max(0, r − mean of the group): → advantages (B, T), returns (B, T)."""
    margin = inputs.rewards - group_mean(inputs.rewards, inputs.groups, inputs.members)
    returns = discounted_returns(token_rewards(margin.clamp(min=0), inputs), inputs.action_mask, 1.0)
    return returns, returns


# A plain function would do; this says that a group must have at least two samples.
above_average = Estimator(best_of_group, needs_groups=True)
