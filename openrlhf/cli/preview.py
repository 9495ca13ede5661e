"""``openrlhf preview COMMAND --flag value ...``: rows as the model would meet them, before anything is trained.

The flags are those of the command, and nothing but its tokenizer is loaded. It is the command with --preview 3.
"""

from __future__ import annotations

import importlib
import sys

from openrlhf.cli.main import VERBS

SHOWN = "3"
COMMANDS = ("sft", "rm", "dpo", "kto", "kd", "prm", "ppo")


def main(argv: list[str] | None = None) -> None:
    """Run a command with ``--preview``. Ends the process with code 2 and a sentence when there is no such command."""
    words = sys.argv[1:] if argv is None else argv
    if words[:1] in (["-h"], ["--help"]):
        print(__doc__)
        raise SystemExit(0)
    if not words or words[0] not in COMMANDS:
        print(f"openrlhf preview needs a command before its flags: one of {', '.join(COMMANDS)}.", file=sys.stderr)
        raise SystemExit(2)
    given = any(word.partition("=")[0] == "--preview" for word in words)
    importlib.import_module(VERBS[words[0]][0]).main([*words[1:], *([] if given else ["--preview", SHOWN])])


if __name__ == "__main__":
    main()
