"""A tokenizer trained on your copy of GSM8K, and a tiny model: ``python prepare.py gsm8k_train.jsonl FOLDER``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from openrlhf.models.tiny import build_model, build_tokenizer

VOCABULARY = 2048


def main(data: str, folder: str) -> None:
    rows = [json.loads(line) for line in Path(data).read_text(encoding="utf-8").splitlines()]
    texts = [row["question"] + "\n" + row["answer"] for row in rows]
    tokenizer = build_tokenizer(Path(folder), texts=texts, vocab_size=VOCABULARY)
    build_model(Path(folder), vocab_size=len(tokenizer), hidden=192, layers=4, heads=6, kv_heads=2, head_dim=32, seed=0)
    print(f"a tiny model and a tokenizer of {len(tokenizer)} tokens are in {folder}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python prepare.py GSM8K_FILE FOLDER")
    main(sys.argv[1], sys.argv[2])
