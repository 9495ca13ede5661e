"""``openrlhf replay RUN STEP``: the rewards, advantages and losses of a stored step once more, on the CPU.

It ends with code 0 when all numbers come out as they were stored, and with 1 and the first that does not.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from openrlhf.cli.run_command import run_command

DIFFERS = 1


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="openrlhf replay", description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of an RL run: its --save_path")
    parser.add_argument("step", type=int, metavar="STEP", help="a step whose samples were stored")
    run_command(run, parser.parse_args(argv))


def run(args: argparse.Namespace) -> None:
    """Print a line a field until one differs."""
    from openrlhf.inspect.replay import replay
    from openrlhf.inspect.run_folder import check_run, read_config, read_metrics, stored

    check_run(args.run)
    step, config = stored(args.run, args.step), read_config(args.run)
    logged = next((line for line in read_metrics(args.run) if line["step"] == args.step), {})
    part = "the whole rollout batch" if step.whole else f"{len(step.samples)} of {step.rows} samples"
    print(f"step {step.step}: {part}")
    for check in replay(step, config, logged):
        note = f", {check.note}" if check.note else ""
        if check.difference is None:
            print(f"  {check.field}: {check.compared} as stored{note}")
            continue
        d = check.difference
        print(f"  {check.field} DIFFERS at {d.where}: stored {d.stored:.8g}, computed again {d.again:.8g}{note}")
        raise SystemExit(DIFFERS)
    print("everything comes out as it was stored")


if __name__ == "__main__":
    main()
