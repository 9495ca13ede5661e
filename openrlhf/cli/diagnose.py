"""``openrlhf diagnose RUN``: what went wrong in a run, the worst first, with the numbers and the samples behind it.

It reads metrics.jsonl and the stored samples of the run folder, also while the run goes on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from openrlhf.cli.run_command import run_command


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="openrlhf diagnose", description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a training run: its --save_path")
    run_command(run, parser.parse_args(argv))


def run(args: argparse.Namespace) -> None:
    from openrlhf.inspect.diagnose import diagnose, report
    from openrlhf.inspect.evidence import gather_evidence
    from openrlhf.inspect.run_folder import check_run

    check_run(args.run)
    evidence = gather_evidence(args.run)
    print(f"{args.run}: {len(evidence.lines)} logged steps, {len(evidence.last_samples)} samples of the last ones")
    for line in report(diagnose(evidence)):
        print(line)


if __name__ == "__main__":
    main()
