"""The console command: ``openrlhf VERB …`` runs the module of the verb."""

from __future__ import annotations

import difflib
import importlib
import sys

import openrlhf

# Verb → module with main(argv), and what it does. A module is imported only when its verb is called.
VERBS: dict[str, tuple[str, str]] = {
    "sft": ("openrlhf.cli.train_sft", "supervised fine-tuning and continued pre-training"),
    "rm": ("openrlhf.cli.train_rm", "training of a reward model on pairs of answers"),
    "dpo": ("openrlhf.cli.train_dpo", "direct preference optimisation: DPO, cDPO, IPO"),
    "kto": ("openrlhf.cli.train_kto", "preference optimisation from single labelled answers: KTO"),
    "kd": ("openrlhf.cli.train_kd", "distillation from a larger model"),
    "prm": ("openrlhf.cli.train_prm", "training of a process reward model on labelled steps"),
    "ppo": ("openrlhf.cli.train_ppo_ray", "reinforcement learning: PPO, REINFORCE++, GRPO, RLOO"),
    "lora_combiner": ("openrlhf.cli.lora_combiner", "a LoRA adapter and its model into one model"),
    "serve_rm": ("openrlhf.cli.serve_rm", "a reward model as an HTTP server"),
    "batch_inference": ("openrlhf.cli.batch_inference", "answers to many prompts, or rewards of many answers"),
    "preview": ("openrlhf.cli.preview", "rows as a command's model would meet them, with what carries loss marked"),
    "reward": ("openrlhf.cli.reward", "a reward function or server tried on rows before a run"),
    "plan": ("openrlhf.cli.plan", "layouts of a run that fit a cluster: memory, seconds, ready command lines"),
    "check": ("openrlhf.cli.check", "all that can be known of a run before it: flags, data, models, reward, disk"),
    "interactive_chat": ("openrlhf.cli.interactive_chat", "conversation with a model in the terminal"),
    "replay": ("openrlhf.cli.replay", "rewards, advantages and losses of a stored RL step, computed again"),
    "diagnose": ("openrlhf.cli.diagnose", "what went wrong in a run, with the numbers and samples behind it"),
    "view": ("openrlhf.cli.view", "a page of a run's curves, rollouts and tokens, beside another run's"),
    "demo": ("openrlhf.cli.demo", "the whole pipeline on a tiny model, in one process"),
}


def main(argv: list[str] | None = None) -> None:
    """Run a verb. Ends the process with code 2 and a sentence when there is no such verb."""
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0] in ("-h", "--help"):
        print(overview())
    elif words[0] == "--version":
        print(openrlhf.__version__)
    elif words[0] not in VERBS:
        print(_unknown(words[0]), file=sys.stderr)
        raise SystemExit(2)
    else:
        importlib.import_module(VERBS[words[0]][0]).main(words[1:])


def overview() -> str:
    """The verbs, one a line."""
    width = max(map(len, VERBS))
    lines = [f"  openrlhf {verb:<{width}}  {does}" for verb, (_, does) in VERBS.items()]
    return "\n".join([*lines, "", "openrlhf VERB --help lists the flags of a verb; openrlhf --version the version."])


def _unknown(word: str) -> str:
    near = difflib.get_close_matches(word, VERBS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(VERBS)}."
    return f"openrlhf has no verb {word!r}; {hint}"


if __name__ == "__main__":
    main()
