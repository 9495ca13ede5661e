"""Whether two models mean the same by a token id."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from openrlhf.config.groups import ModelConfig
from openrlhf.models.load import load_config, load_tokenizer


def check_same_tokens(path: str, flag: str, tokenizer: PreTrainedTokenizerBase, config: ModelConfig) -> None:
    """Refuse the model at ``path`` of ``flag`` when it would read ids of ``tokenizer`` as other text.

    It may know further tokens, which it never meets. Raises ValueError that compares the two.
    """
    if path == config.pretrain:
        return
    own, other = tokenizer.get_vocab(), load_tokenizer(path, config, flag).get_vocab()
    strange = next((token for token, number in own.items() if other.get(token) != number), None)
    if strange is None:
        return
    there = f"is {other[strange]} there" if strange in other else "is not there"
    raise ValueError(
        f"{flag} {path}: its tokenizer has another vocabulary than that of --pretrain {config.pretrain} "
        f"({len(other)} tokens, not {len(own)}; {strange!r} is {own[strange]} here and {there}), so it would read "
        "other text; choose a model of the same family"
    )


def load_policy_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer of ``--pretrain``. Raises ValueError as ``load_tokenizer`` and ``check_embedding``."""
    tokenizer = load_tokenizer(config.pretrain, config)
    check_embedding(config.pretrain, "--pretrain", tokenizer, config)
    return tokenizer


def check_embedding(path: str, flag: str, tokenizer: PreTrainedTokenizerBase, config: ModelConfig) -> None:
    """Raise ValueError when the model at ``path`` has fewer embeddings than ``tokenizer`` has ids."""
    rows = load_config(path, config, flag).get_text_config().to_dict().get("vocab_size")
    token, last = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
    if rows is not None and last >= rows:
        raise ValueError(
            f"{flag} {path}: the tokenizer goes up to {last} ({token!r}) and the model has embeddings for {rows} "
            "tokens: take the tokenizer that belongs to the model, or enlarge the model's embeddings"
        )
