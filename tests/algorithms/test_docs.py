"""docs/algorithms.md names every registry entry; every public function of the layer cites a source."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from openrlhf.algorithms import (
    advantages,
    kl,
    language_losses,
    masked,
    policy_losses,
    preference_losses,
    process_losses,
    returns,
    reward_losses,
    rewards,
    rollout_correction,
    unpaired_losses,
    value_losses,
)

PAGE = (Path(__file__).parents[2] / "docs" / "algorithms.md").read_text()
ENTRIES = [
    *advantages.ADVANTAGE_ESTIMATORS,
    *policy_losses.POLICY_LOSSES,
    *rollout_correction.ROLLOUT_CORRECTIONS,
    *kl.KL_ESTIMATORS,
    *preference_losses.PREFERENCE_LOSSES,
    *reward_losses.REWARD_LOSSES,
]
PLAIN = {
    *(masked.zero_outside, masked.masked_sum, masked.masked_mean),
    *(advantages.find_estimator, policy_losses.find_policy_loss, rollout_correction.find_correction),
}
MODULES = (
    *(advantages, kl, language_losses, masked, policy_losses, preference_losses),
    *(process_losses, returns, reward_losses, rewards, rollout_correction, unpaired_losses, value_losses),
)
FUNCTIONS = [
    function
    for module in MODULES
    for name, function in inspect.getmembers(module, inspect.isfunction)
    if function.__module__ == module.__name__ and not name.startswith("_") and function not in PLAIN
]


@pytest.mark.parametrize("name", ENTRIES)
def test_every_entry_is_a_row_of_a_table(name):
    assert re.search(rf"^\|.*`{name}`", PAGE, flags=re.MULTILINE)


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f"{f.__module__.rsplit('.', 1)[1]}.{f.__name__}")
def test_every_function_cites_its_paper_and_stands_on_the_page(function):
    assert function.__doc__ and re.search(r"arXiv:\d{4}\.\d{5}", function.__doc__)
    assert function.__name__ in PAGE


def test_every_paper_on_the_page_is_cited_by_the_code():
    cited = set()
    for function in FUNCTIONS:
        cited |= set(re.findall(r"\d{4}\.\d{5}", function.__doc__))
    assert set(re.findall(r"arxiv.org/abs/(\d{4}\.\d{5})", PAGE)) <= cited | set(
        re.findall(r"\d{4}\.\d{5}", kl.AdaptiveKL.__doc__ + kl.FixedKL.__doc__)
    )
