"""Problems with a known answer, each learnt from three random starts by the real commands in this process.

The models know a few characters, so that a run takes seconds. Bounds leave room for another machine's rounding.
"""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from openrlhf.cli import train_dpo, train_ppo_ray, train_rm
from openrlhf.models.tiny import EOS, PAD, build_model
from tests.recipes.helpers import column, run, write_rows

pytestmark = pytest.mark.slow

SEEDS = (0, 1, 2)
CHARACTERS = "abcdefghijklmnopqrst"
ESTIMATORS = ("gae", "reinforce", "reinforce_baseline", "rloo", "group_norm", "dr_grpo")

# The share of the answer that is right, place by place; shuffled, it says nothing about the answer it comes with.
REWARD = """
import random

def reward_func(queries, prompts, labels):
    rewards = [
        sum(a == b for a, b in zip(query[len(prompt):], label)) / len(label)
        for query, prompt, label in zip(queries, prompts, labels)
    ]
    {then}
    return rewards
"""


class Workshop:
    """Models by seed, files, and runs in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs = 0
        for name, then in (("reward", ""), ("shuffled", "random.shuffle(rewards)")):
            (folder / f"{name}.py").write_text(REWARD.format(then=then))

    def model(self, seed: int) -> Path:
        folder = self.folder / f"model{seed}"
        if not folder.exists():
            tokens = [PAD, EOS, *CHARACTERS]
            core = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token=PAD))
            core.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
            core.decoder = decoders.Fuse()
            PreTrainedTokenizerFast(tokenizer_object=core, pad_token=PAD, eos_token=EOS).save_pretrained(folder)
            sizes = {"hidden": 32, "layers": 1, "heads": 2, "kv_heads": 1, "head_dim": 16}
            build_model(folder, vocab_size=len(tokens), seed=seed, **sizes)
        return folder

    def out(self) -> dict[str, Path]:
        self.runs += 1
        return {"save_path": self.folder / f"out{self.runs}", "ckpt_path": self.folder / f"steps{self.runs}"}

    def copying(self, letters: str, places: int, seed: int, steps: int, **flags: Any) -> Path:
        """RL on saying a text of ``places`` of these letters again, eight answers to each text a step."""
        texts = [""]
        for _ in range(places):
            texts = [text + letter for text in texts for letter in letters]
        rows = [{"input": text, "label": text} for text in texts]
        given = {
            "local": True, "pretrain": self.model(seed), "seed": seed, "label_key": "label",
            "prompt_data": write_rows(self.folder / f"{letters}{places}.jsonl", rows),
            "remote_rm_url": self.folder / "reward.py", "rollout_batch_size": len(rows), "n_samples_per_prompt": 8,
            "train_batch_size": 8 * len(rows), "use_dynamic_batch": True, "micro_rollout_batch_size": 8 * len(rows),
            "generate_max_len": places, "num_episodes": steps, "lr_scheduler": "constant", "lr_warmup_ratio": 0,
            "actor_learning_rate": 1e-2, "critic_learning_rate": 1e-2, "init_kl_coef": 0, **self.out(), **flags,
        }  # fmt: skip
        return run(train_ppo_ray.main, given)

    @cache  # noqa: B019 - the workshop lives as long as its tests
    def on_policy(self, estimator: str, seed: int) -> float:
        return end(self.copying("abcdefgh", 1, seed, 64, advantage_estimator=estimator))


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("convergence"))


def end(folder: Path, name: str = "reward", steps: int = 10) -> float:
    """Mean over the last steps."""
    values = column(folder, name)[-steps:]
    return sum(values) / len(values)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_bandit_finds_the_reward_of_one(workshop: Workshop, estimator: str, seed: int) -> None:
    """One token for each of eight prompts; chance is 1/22."""
    assert workshop.on_policy(estimator, seed) >= 0.95


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("estimator", "rate", "steps", "answers"),
    [("gae", 7e-3, 100, 8), ("reinforce", 5e-3, 80, 16), ("group_norm", 5e-3, 80, 16)],
)
def test_two_letters_are_learnt_from_the_share_that_is_right(
    workshop: Workshop, estimator: str, rate: float, steps: int, answers: int, seed: int
) -> None:
    """The reward of a sequence must find its tokens. With 8 answers and twice the rate every sixth start stays with a
    second letter that is right for some texts only."""
    flags = {"advantage_estimator": estimator, "actor_learning_rate": rate, "n_samples_per_prompt": answers}
    flags |= {"train_batch_size": 16 * answers, "micro_rollout_batch_size": 16 * answers}
    assert end(workshop.copying("abcd", 2, seed, steps, **flags)) >= 0.9


@pytest.mark.parametrize("seed", SEEDS)
def test_shuffled_rewards_teach_nothing(workshop: Workshop, seed: int) -> None:
    """The mean is still the true one."""
    flags = {"advantage_estimator": "group_norm", "remote_rm_url": workshop.folder / "shuffled.py"}
    assert max(column(workshop.copying("abcdefgh", 1, seed, 46, **flags), "reward")) < 0.35


@pytest.mark.parametrize("seed", SEEDS)
def test_the_controller_holds_its_kl(workshop: Workshop, seed: int) -> None:
    """The whole reward would cost a KL of log 22 = 3.1; the coefficient begins too low."""
    flags = {"advantage_estimator": "dr_grpo", "use_kl_loss": True, "kl_estimator": "k3", "init_kl_coef": 0.6}
    flags |= {"kl_target": 0.1, "kl_horizon": 640}
    assert 0.07 <= end(workshop.copying("abcdefgh", 1, seed, 110, **flags), "kl", steps=50) <= 0.13


STALE = {"advantage_estimator": "reinforce", "async_train": True, "async_queue_size": 2}
TIS = {"enable_vllm_is_correction": True, "vllm_is_truncated_threshold": (0.0, 2.0)}


@pytest.mark.parametrize("seed", SEEDS)
def test_samples_of_two_updates_ago_teach_as_much_when_they_are_weighed(workshop: Workshop, seed: int) -> None:
    stale = end(workshop.copying("abcdefgh", 1, seed, 64, actor_learning_rate=8e-3, **STALE, **TIS))
    assert stale >= 0.95 * workshop.on_policy("reinforce", seed)


def test_not_weighing_them_is_visibly_worse(workshop: Workshop) -> None:
    """In steps so large that four of them matter. Starts differ much more than in the other tests, so there are six."""

    def summed(**flags: Any) -> float:
        flags |= STALE | {"actor_learning_rate": 1.5e-2, "async_queue_size": 4}
        return sum(end(workshop.copying("abcdefgh", 1, seed, 40, **flags)) for seed in range(6))

    weighed, plain = summed(**TIS), summed()
    assert plain < 0.93 * weighed


def pairs_by_rule(seed: int, number: int) -> list[dict[str, str]]:
    """The better text has the higher sum over its letters, each worth its place in a to h."""
    draw = random.Random(seed)
    rows: list[dict[str, str]] = []
    while len(rows) < number:
        two = ["".join(draw.choices("abcdefgh", k=6)) for _ in range(2)]
        worth = [sum(map(ord, text)) for text in two]
        if abs(worth[0] - worth[1]) >= 3:
            rejected, chosen = sorted(two, key=lambda text: sum(map(ord, text)))
            rows.append({"prompt": "s", "chosen": chosen, "rejected": rejected})
    return rows


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("command", ["rm", "dpo"])
def test_a_linear_rule_is_learnt_from_pairs(workshop: Workshop, command: str, seed: int) -> None:
    """And holds for pairs that were never seen. Chance is 1/2."""
    folder = workshop.folder
    flags = {
        "pretrain": workshop.model(seed), "seed": seed, "prompt_key": "prompt", "max_len": 16, "max_epochs": 2,
        "dataset": write_rows(folder / "pairs.jsonl", pairs_by_rule(0, 1600)),
        "eval_dataset": write_rows(folder / "held_out.jsonl", pairs_by_rule(1, 200)), "eval_split": "train",
        "train_batch_size": 32, "use_dynamic_batch": True, "learning_rate": 5e-3, "logging_steps": 10,
        **workshop.out(),
    }  # fmt: skip
    main = {"rm": train_rm.main, "dpo": train_dpo.main}[command]
    out = run(main, flags if command == "rm" else flags | {"beta": 0.5})
    assert column(out, "eval_accuracy")[-1] >= 0.95
    if command == "dpo":
        margins = column(out, "reward_margin")
        third = len(margins) // 3
        assert sum(margins[:third]) < sum(margins[third : 2 * third]) < sum(margins[2 * third : 3 * third])
