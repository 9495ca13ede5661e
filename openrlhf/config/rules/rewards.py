"""Who gives rewards to a rollout, and where."""

from __future__ import annotations

from urllib.parse import urlsplit

from openrlhf.config.commands import PPOConfig, defaults
from openrlhf.config.derived import file_and_servers, reward_models, reward_sources


def reward_source(config: PPOConfig) -> None:
    models, file, weights = reward_models(config), config.reward.remote_rm_url, config.reward.reward_weights
    agent = config.rollout.agent_func_path
    if not models and file is None and agent is None:
        raise ValueError(
            "nothing gives rewards: set --reward_pretrain (a model), --remote_rm_url (a .py file "
            "or the address of a server) or --agent_func_path (a .py file that holds the conversations)."
        )
    if not all(models):
        raise ValueError(f"--reward_pretrain {config.reward.reward_pretrain!r} has a comma without a name beside it.")
    if models and file is not None and weights is None:
        raise ValueError(
            "--reward_pretrain and --remote_rm_url both give rewards: say with --reward_weights how much each counts, "
            "or leave one out; a critic that starts from a reward model is named by --critic_pretrain."
        )
    both = file_and_servers(config.reward)
    if both and weights is None:
        raise ValueError(
            "--remote_rm_url names a file and servers, which both give rewards: say with --reward_weights how much "
            "each counts, first the file, or leave one out."
        )
    sources = len(models) + ((file or agent) is not None) + both
    if weights is not None and len(weights) != sources:
        raise ValueError(
            f"--reward_weights has {len(weights)} numbers for {sources} rewards: give one for each model of "
            "--reward_pretrain, in their order, and then one for --remote_rm_url if there is one, or two for a file "
            "and servers."
        )
    for name in ("reward_timeout", "on_reward_failure"):
        if file is None and agent is None and vars(config.reward)[name] != defaults(PPOConfig)[name]:
            raise ValueError(
                f"--{name} is about reward functions, servers and agents: it needs --remote_rm_url or "
                "--agent_func_path."
            )
    if config.reward.normalize_reward and not models:
        raise ValueError("--normalize_reward uses numbers stored in a reward model: it needs --reward_pretrain.")


def agent(config: PPOConfig) -> None:
    file, reward = config.rollout.agent_func_path, config.reward
    if file is None:
        return
    if not file.endswith(".py"):
        raise ValueError(f"--agent_func_path {file} must be a .py file that defines AgentInstance or AgentExecutor.")
    for name in ("reward_pretrain", "remote_rm_url"):
        if vars(reward)[name] is not None:
            raise ValueError(
                f"--agent_func_path and --{name} both give rewards: leave one out; an agent may ask a reward server "
                "itself, and a critic that starts from a reward model is named by --critic_pretrain."
            )
    if reward.overlong_buffer_len is not None:
        raise ValueError(
            "--overlong_buffer_len is about the length of a single response: with --agent_func_path leave it out and "
            "let the agent take length off its rewards."
        )


def reward_address(config: PPOConfig) -> None:
    _, servers = reward_sources(config.reward)
    for part in servers:
        try:
            place = urlsplit(part)
            sound = place.scheme in ("http", "https") and place.hostname and place.port != 0
        except ValueError:  # a port that is no number, a broken IPv6 address
            sound = False
        if not sound:
            raise ValueError(
                f"--remote_rm_url {part!r} must be a .py file that defines reward_func, of which there is one at most, "
                "or addresses that begin with http:// or https://, separated by commas."
            )
        if place.username is not None:
            raise ValueError(
                "--remote_rm_url holds a user name, which logs would show: set OPENRLHF_RM_TOKEN for a server that "
                "needs a token."
            )


def overlong(config: PPOConfig) -> None:
    reward, longest = config.reward, config.rollout.generate_max_len
    if reward.overlong_buffer_len is None:
        if reward.overlong_penalty_factor != defaults(PPOConfig)["overlong_penalty_factor"]:
            raise ValueError("--overlong_penalty_factor needs --overlong_buffer_len, where the penalty begins.")
    elif reward.overlong_buffer_len > longest:
        raise ValueError(
            f"--overlong_buffer_len {reward.overlong_buffer_len} is longer than --generate_max_len {longest}: every "
            "answer would be overlong."
        )
