"""Pairs in the form of the commands, a tokenizer trained on them, and a tiny model: ``python prepare.py PAIRS FOLDER``.

PAIRS is a JSON list or JSON lines. A row has ``prompt``, ``chosen`` and ``rejected``; or ``conversations``, whose last
message is the prompt. A message is a text, or holds one in ``value`` or ``content``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from openrlhf.models.tiny import build_model, build_tokenizer

VOCABULARY = 1024
LONGEST_PROMPT = 200  # characters; a tiny model does not read long questions


def main(data: str, folder: str) -> None:
    text = Path(data).read_text(encoding="utf-8")
    rows = json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in text.splitlines()]
    pairs = [pair for pair in map(as_pair, rows) if len(pair["prompt"]) <= LONGEST_PROMPT]
    base = Path(folder) / "base"
    tokenizer = build_tokenizer(base, texts=[text for pair in pairs for text in pair.values()], vocab_size=VOCABULARY)
    build_model(base, vocab_size=len(tokenizer), hidden=128, layers=3, heads=4, kv_heads=2, head_dim=32, seed=0)
    lines = [json.dumps(pair) + "\n" for pair in pairs]
    (Path(folder) / "pairs.jsonl").write_text("".join(lines), encoding="utf-8")
    print(f"{len(pairs)} of {len(rows)} pairs, a tiny model and a tokenizer of {len(tokenizer)} tokens are in {folder}")


def as_pair(row: dict[str, Any]) -> dict[str, str]:
    prompt = row["prompt"] if "prompt" in row else row["conversations"][-1]
    return {"prompt": words(prompt), "chosen": words(row["chosen"]), "rejected": words(row["rejected"])}


def words(message: Any) -> str:
    if isinstance(message, list):
        message = message[-1]
    return str(message if isinstance(message, str) else message.get("value") or message["content"]).strip()


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python prepare.py PAIRS FOLDER")
    main(sys.argv[1], sys.argv[2])
