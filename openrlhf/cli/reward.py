"""``openrlhf reward --flag value ...``: the function or server of --remote_rm_url is tried on rows before any run.

The flags are those of ``openrlhf ppo``; where they do not say who samples, --local is taken. Nothing but its tokenizer
is loaded. The first --preview rows (8 without it) are answered with their label, with half of it, with it again and
again, and with nothing. The exit code is 2 when the reward fails.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from openrlhf.cli.run_command import run_command
from openrlhf.config.commands import PPOConfig
from openrlhf.config.parse import parse

if TYPE_CHECKING:
    from openrlhf.rollout.trial import Tried
    from openrlhf.types import Prompt

ROWS = 8


def main(argv: list[str] | None = None) -> None:
    words = sys.argv[1:] if argv is None else argv
    if words[:1] in (["-h"], ["--help"]):
        print(__doc__)
        raise SystemExit(0)
    run_command(run, parse(PPOConfig, placed(words)))


def placed(words: Sequence[str]) -> list[str]:
    """The flags, with --local where they do not say who samples: a trial asks nobody to."""
    names = {word.partition("=")[0] for word in words}
    said = names & {"--local", "--config"} or any(name.startswith("--vllm") for name in names)
    return [*words] if said else [*words, "--local"]


def run(config: PPOConfig) -> None:
    """Print what every kind of answer is paid. Raises ValueError when the reward fails."""
    from openrlhf.cli.process import prepare_process
    from openrlhf.cli.train_ppo_ray import read_prompts
    from openrlhf.rollout.sources import reward_function
    from openrlhf.rollout.trial import kinds, remarks, try_answers

    prepare_process(config.train)
    named = config.reward.remote_rm_url
    if named is None:
        raise ValueError(
            "openrlhf reward tries a function or a server: name it with --remote_rm_url; a reward model is tried with "
            "openrlhf batch_inference --eval_task rm, and an agent with openrlhf ppo --local."
        )
    tokenizer, prompts = read_prompts(config)
    prompts = prompts[: config.data.preview or ROWS]
    # Whatever fails is told: that is what a trial is for. Its own process, since nobody knows the function yet.
    chunk, strict = config.rollout.micro_rollout_batch_size, replace(config.reward, on_reward_failure="stop")
    function = reward_function(strict, chunk, isolated=True)
    assert function is not None
    print(f"{named}, {len(prompts)} rows a call")
    tried: list[Tried] = []
    for kind, answers in kinds(prompts, tokenizer, config.rollout.generate_max_len).items():
        tried.append(try_answers(kind, answers, prompts, function, tokenizer))
        print(line(tried[-1]))
    print_rows(prompts, tried)
    for remark in remarks(tried):
        print(f"note: {remark}")


def line(tried: Tried) -> str:
    """A call in one line."""
    rewards, scores = tried.rewards, tried.scores
    parts = [
        f"{tried.kind + ' answers':<17} reward {mean(rewards):.4g} ({min(rewards):.4g} to {max(rewards):.4g})",
        *([f"score {mean(scores):.4g}"] if scores != rewards else []),
        *(f"{name} {value:.4g}" for name, value in tried.logs.items()),
        f"{tried.seconds:.3f} s",
    ]
    return ", ".join(parts)


def print_rows(prompts: Sequence[Prompt], tried: Sequence[Tried]) -> None:
    print(f"\n{'row':>6}" + "".join(f"{each.kind:>12}" for each in tried))
    for place, prompt in enumerate(prompts):
        print(f"{prompt.id:>6}" + "".join(f"{each.rewards[place]:>12.4g}" for each in tried))


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


if __name__ == "__main__":
    main()
