"""Conversations as text: the tokenizer's chat template, and which characters of it the assistant says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from openrlhf.data.report import UnusableRow, whole_characters

Message = dict[str, Any]

# The ShareGPT names of the roles.
ROLES = {"human": "user", "gpt": "assistant"}


@dataclass(frozen=True)
class MarkedText:
    """Text and the character spans [start, end) that carry loss, in order, none of them empty."""

    text: str
    spans: tuple[tuple[int, int], ...]


def as_messages(value: Any, role: str = "user") -> list[Message]:
    """Text → one message of ``role``; one message or a list of them → a list of {role, content}.

    Messages may be written with the keys from/value and the roles human/gpt. Keys without a value are left out, as
    columnar files fill them in. Raises UnusableRow for anything else.
    """
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    messages = [value] if isinstance(value, Mapping) else value
    if isinstance(messages, Sequence) and all(isinstance(message, Mapping) for message in messages):
        return [_message(message) for message in messages]
    raise UnusableRow("neither text nor a list of messages")


def says_something(message: Message) -> bool:
    """Whether the message has content other than white space, or calls a tool."""
    content = message["content"]
    return bool(message.get("tool_calls") or (content.strip() if isinstance(content, str) else content))


def render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], generation_prompt: bool = False) -> str:
    """The conversation in the tokenizer's chat template.

    Raises ValueError when there is no template or the template refuses the conversation, UnusableRow for half a
    character.
    """
    if not tokenizer.chat_template:
        raise ValueError("the tokenizer has no chat template; give one with --tokenizer_chat_template")
    try:
        text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=generation_prompt)
    except (TemplateError, TypeError) as error:  # the latter from a template that adds text to something else
        raise ValueError(f"the chat template refuses this conversation ({error})") from error
    assert isinstance(text, str)
    return whole_characters(text)


def mark_answer(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message], answer: Sequence[Message]) -> MarkedText:
    """Prompt and answer rendered as one conversation; everything after the prompt carries loss.

    Raises ValueError as ``mark_turns``.
    """
    before = render(tokenizer, prompt, generation_prompt=True)
    text = render(tokenizer, [*prompt, *answer])
    _check_prefix(before, text)
    return _marked(text, [(len(before), len(text))])


def mark_turns(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> MarkedText:
    """The conversation up to its last assistant turn; every assistant turn carries loss.

    A turn reaches from the end of the generation prompt to the template's closing token, without the white space
    behind it, which the policy is never asked to write. The first message must not be the assistant's. Raises
    ValueError when rendering more messages changes how the earlier ones look, because then no text shows all turns as
    the policy would meet them.
    """
    text = render(tokenizer, messages)
    spans = []
    for i, message in enumerate(messages):
        if message["role"] != "assistant" or not says_something(message):
            continue
        before = render(tokenizer, messages[:i], generation_prompt=True)
        after = text if i + 1 == len(messages) else render(tokenizer, messages[: i + 1])
        _check_prefix(before, after)
        _check_prefix(after, text)
        spans.append((len(before), len(after)))
    return _marked(text, spans)


def _message(message: Mapping[str, Any]) -> Message:
    given = {key: value for key, value in message.items() if value is not None}
    role = given.pop("from", None) or given.get("role")
    if role is None:
        raise UnusableRow("message with neither 'role' nor 'from'")
    content = given.pop("value", None) or given.get("content", "")
    if not isinstance(content, (str, list)):
        raise UnusableRow("message whose content is not text")
    return {**given, "role": ROLES.get(role, role), "content": content}


def _check_prefix(before: str, after: str) -> None:
    if not after.startswith(before):
        raise ValueError(
            "this chat template does not keep its prefix (it rewrites earlier turns, or its generation prompt is not "
            "how an assistant turn begins), so the assistant's words cannot be found; "
            "train on the last turn only or give another template with --tokenizer_chat_template"
        )


def _marked(text: str, spans: Sequence[tuple[int, int]]) -> MarkedText:
    trimmed = [(start, start + len(text[start:end].rstrip())) for start, end in spans]
    filled = tuple((start, end) for start, end in trimmed if end > start)
    return MarkedText(text[: filled[-1][1]] if filled else text, filled)
