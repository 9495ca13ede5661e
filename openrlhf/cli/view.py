"""``openrlhf view RUN [OTHER]``: a page of a run's curves, rollouts and tokens, alone or beside another run.

It is served to browsers on this machine alone, also while the run goes on; --export writes it into one file instead.
"""

from __future__ import annotations

import argparse
import signal
from pathlib import Path
from typing import Any

from openrlhf.cli.run_command import run_command


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="openrlhf view", description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a training run: its --save_path")
    parser.add_argument("other", type=Path, nargs="?", metavar="OTHER", help="a second run, to be compared with it")
    parser.add_argument("--port", type=int, default=8321, help="port on 127.0.0.1; 0 takes a free one (%(default)s)")
    parser.add_argument("--export", type=Path, metavar="FILE", help="write one HTML file and end")
    parser.add_argument(
        "--steps", type=int, nargs="+", help="steps whose samples --export writes (the first and the last stored one)"
    )
    run_command(run, parser.parse_args(argv))


def run(args: argparse.Namespace) -> None:
    from openrlhf.inspect.pages import Pages
    from openrlhf.inspect.run_folder import check_run

    runs = [args.run] if args.other is None else [args.run, args.other]
    for each in runs:
        check_run(each)
    if args.export is None:
        if args.steps is not None:
            raise ValueError("--steps chooses what --export FILE writes; the served page has every stored step.")
        serve_pages(Pages(runs), args.port)
    else:
        write(args.export, Pages(runs).export(args.steps))


def write(file: Path, page: str) -> None:
    try:
        file.write_text(page, encoding="utf-8")
    except OSError as error:
        raise ValueError(f"--export {file} cannot be written ({error.strerror}): name another file.") from error
    print(f"wrote {file}, {len(page.encode()) / 1e6:.1f} MB")


def serve_pages(pages: Any, port: int) -> None:
    """Answer until SIGTERM or Ctrl-C, which end the process with code 0."""
    try:
        from openrlhf.backends.reward_server import bind, serve
        from openrlhf.inspect.serve import HOST, view_app
    except ModuleNotFoundError as error:
        raise ImportError(
            f"view needs {error.name} to serve: pip install 'openrlhf[serve]', or write a file with --export"
        ) from error
    for stop in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stop, _leave)
    bound = bind(HOST, port)
    bound.listen()  # whoever connects from now on is answered
    print(f"http://{HOST}:{bound.getsockname()[1]} shows {pages.runs[0]}; Ctrl-C ends it", flush=True)
    serve(view_app(pages), bound)


def _leave(number: int, frame: Any) -> None:
    raise SystemExit(0)


if __name__ == "__main__":
    main()
