"""A training command that starts again by itself when a process of it died."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import TypeVar

from openrlhf.cli.run_command import BAD_INPUT, run_command
from openrlhf.config.commands import DPOConfig, KDConfig, KTOConfig, PPOConfig, PRMConfig, RMConfig, SFTConfig
from openrlhf.config.parse import parse
from openrlhf.config.secrets import moved

T = TypeVar("T", SFTConfig, RMConfig, DPOConfig, KTOConfig, KDConfig, PRMConfig, PPOConfig)
PAUSE_S = 5.0  # for what is left of the processes that ended
LOOK_S = 60.0


def run_training(run: Callable[[T], None], command: type[T], argv: Sequence[str] | None = None) -> None:
    """``run_command`` on the command line; with ``--max_restarts`` in a process that is started again when it ends with
    neither 0 nor a sentence about its input."""
    words = sys.argv[1:] if argv is None else list(argv)
    config = parse(command, words)
    if config.checkpoint.max_restarts == 0:
        run_command(run, config)
    elif "RANK" in os.environ:
        print(
            "--max_restarts is the launcher's here: give it to torchrun, and --load_checkpoint to this", file=sys.stderr
        )
        raise SystemExit(BAD_INPUT)
    else:
        keep_running(run.__module__, words, config.checkpoint.max_restarts)


def keep_running(module: str, words: Sequence[str], most: int) -> None:
    """The command of a module, in processes of their own. Ends this one as the last of them ended."""
    specification = sys.modules[module].__spec__  # its name, where it runs as the main program
    assert specification is not None
    hidden, secrets = moved(words)
    program = [sys.executable, "-m", specification.name, *hidden, "--max_restarts", "0"]
    with Supervisor(os.environ | secrets) as supervisor:
        code = supervisor.run(program)
        for restart in range(1, most + 1):
            if code in (0, BAD_INPUT) or supervisor.stopped:
                break
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
            print(f"the run {how}; restart {restart} of --max_restarts {most}", file=sys.stderr, flush=True)
            time.sleep(PAUSE_S)
            code = supervisor.run([*program, "--load_checkpoint"])
    if code != 0:
        raise SystemExit(128 - code if code < 0 else code)


class Supervisor:
    """Passes SIGTERM and SIGINT on to the process that it waits for, and starts none after that."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment
        self.stopped = False
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Supervisor:
        self.before = {number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def run(self, program: list[str]) -> int:
        """Its exit code; minus the number of the signal that ended it."""
        self.process = subprocess.Popen(program, env=self.environment)
        while True:
            try:
                return self.process.wait(timeout=LOOK_S)
            except subprocess.TimeoutExpired:
                continue

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.stopped = True
        if self.process is not None:
            self.process.send_signal(number)
