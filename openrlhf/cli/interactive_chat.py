"""A conversation with a model in the terminal: ``openrlhf interactive_chat`` or
``python -m openrlhf.cli.interactive_chat``. Lines may also come from a pipe or a file."""

from __future__ import annotations

import sys
from pathlib import Path

from openrlhf.cli.run_command import run_command
from openrlhf.config.commands import InteractiveChatConfig
from openrlhf.config.parse import parse

HELP = "/clear forgets the conversation, /exit or Ctrl-D ends it, Ctrl-C stops an answer."
ANSWER_SHARE = 4  # of --max_len, the part that is kept free for an answer: one in so many


def main(argv: list[str] | None = None) -> None:
    run_command(run, parse(InteractiveChatConfig, argv))


def run(config: InteractiveChatConfig) -> None:
    """Read lines, print answers, until /exit, the end of the input, or Ctrl-C at the prompt."""
    import torch

    from openrlhf.backends.hf_stream import stream_answer
    from openrlhf.cli.process import quiet_libraries
    from openrlhf.data.conversation import Exchange, Style, conversation_text, conversation_tokens
    from openrlhf.data.encode import eos_id
    from openrlhf.models.load import load_causal_lm, load_tokenizer
    from openrlhf.rollout.engine import SamplingParams

    quiet_libraries()
    model, sampling, max_len = config.model, config.sampling, config.chat.max_len
    style = Style(config.data, read_before(config), f"{sampling.csft_prompt} " if sampling.enable_csft else "")
    tokenizer = load_tokenizer(model.pretrain, model)
    stops = (eos_id(tokenizer),)
    conversation_text([], "Hello", tokenizer, style)  # a chat template that refuses everything is told at once
    hf = load_causal_lm(model.pretrain, model).to("cuda" if torch.cuda.is_available() else "cpu").hf.eval()

    def answer(tokens: list[int]) -> str:
        params = SamplingParams(
            temperature=0.0 if sampling.greedy_sampling else sampling.temperature,
            top_p=sampling.top_p,
            max_new_tokens=max_len - len(tokens),
            stop_token_ids=stops,
            repetition_penalty=sampling.repetition_penalty,
        )
        return str(tokenizer.decode(stream_answer(hf, tokenizer, tokens, params), skip_special_tokens=True))

    said: list[Exchange] = []
    if sys.stdin.isatty():
        print(HELP)
    while (line := next_line()) is not None:
        if line == "/clear":
            said.clear()
        elif line.startswith("/"):
            print(f"there is no {line!r}. {HELP}")
        elif line:
            try:
                tokens, forgotten = conversation_tokens(
                    said, line, tokenizer, style, max_len - max(1, max_len // ANSWER_SHARE)
                )
            except ValueError as error:
                print(error)
                continue
            if forgotten:
                print(f"({forgotten} of {len(said)} exchanges are forgotten, for --max_len {max_len})")
                del said[:forgotten]
            try:
                said.append(Exchange(line, answer(tokens)))
            except KeyboardInterrupt:
                print("\n(stopped; this exchange is forgotten)")


def read_before(config: InteractiveChatConfig) -> str:
    """The text of ``--ta_prompt``. Raises ValueError when it cannot be read."""
    if config.chat.ta_prompt is None:
        return ""
    try:
        return Path(config.chat.ta_prompt).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--ta_prompt {config.chat.ta_prompt} cannot be read as text: {error}") from error


def next_line() -> str | None:
    """What the user says, without space around it; None for the end. Raises ValueError for what is no text."""
    try:
        line = input("> " if sys.stdin.isatty() else "").strip()
    except (EOFError, KeyboardInterrupt):
        return None
    except UnicodeDecodeError as error:
        raise ValueError(
            f"the input is not {error.encoding} text; save the file that it comes from as UTF-8"
        ) from error
    return None if line == "/exit" else line


if __name__ == "__main__":
    main()
