"""The shortest problems of your copy of GSM8K, a tokenizer trained on all of it, and a tiny model:
``python prepare.py gsm8k_train.jsonl FOLDER NUMBER``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from openrlhf.models.tiny import build_model, build_tokenizer

VOCABULARY = 2048


def main(data: str, folder: str, number: str) -> None:
    rows = [json.loads(line) for line in Path(data).read_text(encoding="utf-8").splitlines()]
    base = Path(folder) / "base"
    tokenizer = build_tokenizer(base, texts=[in_full(row) for row in rows], vocab_size=VOCABULARY)
    build_model(base, vocab_size=len(tokenizer), hidden=128, layers=3, heads=4, kv_heads=2, head_dim=32, seed=0)
    problems = sorted(rows, key=lambda row: len(in_full(row)))[: int(number)]
    lines = [json.dumps(row) + "\n" for row in problems]
    (Path(folder) / "problems.jsonl").write_text("".join(lines), encoding="utf-8")
    print(f"{len(problems)} problems, a tiny model and a tokenizer of {len(tokenizer)} tokens are in {folder}")


def in_full(row: dict[str, str]) -> str:
    return row["question"] + "\n" + row["answer"]


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit("usage: python prepare.py GSM8K_FILE FOLDER NUMBER")
    main(sys.argv[1], sys.argv[2], sys.argv[3])
