"""How a command ends when what the user gave cannot be used."""

from __future__ import annotations

import atexit
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import openrlhf
from openrlhf.cli.output import spare_output
from openrlhf.config.secrets import forget

C = TypeVar("C")
PACKAGE = Path(openrlhf.__file__).parent
BAD_INPUT = 2  # the exit code of a bad command line too
PART_LOST = 3


def run_command(run: Callable[[C], None], config: C) -> None:
    """``run(config)``. An error that this package raises for what the user gave ends the process with its sentence.

    The exit code is 2, and 3 where a process of the run died, hangs or did not answer in time; a run that a signal
    stopped has said how to go on and ends with 0. Errors from elsewhere (torch, the user's reward function) keep their
    traceback, and with ``OPENRLHF_TRACEBACK=1`` so do ours. Where the command is the whole process, one rank of several
    ends in here.
    """
    from openrlhf.training.checkpoints import Stopped  # here, so that --help does not wait for torch
    from openrlhf.training.roles import PartLost

    spare_output()
    forget()
    try:
        run(config)
    except Stopped:
        pass
    except (ValueError, ImportError, PartLost, TimeoutError) as error:
        if os.environ.get("OPENRLHF_TRACEBACK") == "1" or not _ours(error.__traceback__):
            raise
        print(error, file=sys.stderr)
        if isinstance(error, PartLost | TimeoutError):
            for line in explanation(config, error):
                print(line, file=sys.stderr)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(PART_LOST)  # at once: a thread may still wait, for a reward say, which nobody needs any more
        raise SystemExit(BAD_INPUT) from None
    except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is one
        if not (told := explanation(config, error)):
            raise
        traceback.print_exc()
        print(*told, sep="\n", file=sys.stderr)  # last, where a person looks first
        raise SystemExit(1) from None
    end_rank()


def end_rank() -> None:
    """End this process with 0, where it is one rank of several and the command is all that it was started for.

    All that a normal end calls is called, but the interpreter is not taken down: threads of gloo that still let go of
    a tensor then would abort the process (SIGABRT, "terminate called"), and with it a run that went well.
    """
    import torch.distributed as dist

    spec = vars(sys.modules["__main__"]).get("__spec__")
    whole_process = spec is not None and spec.name.startswith("openrlhf.cli.")
    if whole_process and dist.is_initialized() and dist.get_world_size() > 1:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def explanation(config: object, error: BaseException) -> list[str]:
    """Where memory ran out, what was predicted and what would help; else nothing."""
    from openrlhf.check.memory import out_of_memory

    return out_of_memory(config, error)


def _ours(trace: TracebackType | None) -> bool:
    """Whether the line that raised stands in this package."""
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and Path(trace.tb_frame.f_code.co_filename).is_relative_to(PACKAGE)
