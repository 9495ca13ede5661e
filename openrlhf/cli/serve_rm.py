"""A reward model as an HTTP server: ``openrlhf serve_rm`` or ``python -m openrlhf.cli.serve_rm``.

``openrlhf ppo --remote_rm_url http://127.0.0.1:5000/get_reward`` asks it.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import signal
from typing import TYPE_CHECKING, Any

from openrlhf.cli.run_command import run_command
from openrlhf.config.commands import ServeRMConfig
from openrlhf.config.derived import served_model
from openrlhf.config.groups import ServeConfig
from openrlhf.config.parse import parse

if TYPE_CHECKING:
    from openrlhf.backends.reward_server import Scorer

TOKEN_VARIABLE = "OPENRLHF_RM_TOKEN"
log = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> None:
    run_command(run, parse(ServeRMConfig, argv))


def run(config: ServeRMConfig) -> None:
    """Load the model, then answer until SIGTERM or Ctrl-C, which end the process with code 0."""
    serve_config = config.serve
    token = serve_config.token or os.environ.get(TOKEN_VARIABLE) or None  # an empty one is none
    check_reach(serve_config.host, token)
    try:
        from openrlhf.backends.reward_server import bind, reward_app, serve
    except ModuleNotFoundError as error:
        raise ImportError(f"serve_rm needs {error.name}: pip install 'openrlhf[serve]'") from error
    for stop in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stop, _leave)
    from openrlhf.check.models import look_at_statistics
    from openrlhf.cli.process import quiet_libraries

    quiet_libraries()
    bound = bind(serve_config.host, serve_config.port)  # before the model is loaded, which takes longer
    for _, sentence in look_at_statistics(config):
        print(sentence, flush=True)
    app = reward_app(scorer(serve_config), token)
    bound.listen()  # whoever connects from now on is answered
    host, port = bound.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    print(f"{serve_config.reward_pretrain} answers at http://{shown}:{port}/get_reward", flush=True)
    serve(app, bound)


def check_reach(host: str, token: str | None) -> None:
    """Raises ValueError when others could reach a server that asks for no token."""
    if token is None and not is_loopback(host):
        raise ValueError(
            f"--host {host} is reached from other machines: set {TOKEN_VARIABLE} (or --token) to a secret that clients "
            "must send, or listen on 127.0.0.1."
        )


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def scorer(config: ServeConfig) -> Scorer:
    """The reward model as a function from texts to rewards, on a GPU if there is one."""
    import torch

    from openrlhf.backends.local import LocalForward
    from openrlhf.backends.reward_server import Scored
    from openrlhf.data.queries import query_samples
    from openrlhf.models.load import load_score_model, load_tokenizer
    from openrlhf.training.members import forward
    from openrlhf.types import collate

    path, model, flag = config.reward_pretrain, served_model(config), "--reward_pretrain"
    tokenizer = load_tokenizer(path, model, flag)
    loaded = load_score_model(path, model, config.value_head_prefix, normalize=config.normalize_reward, flag=flag)
    engine = LocalForward(loaded.to("cuda" if torch.cuda.is_available() else "cpu"), config.bf16)

    def score(queries: list[str]) -> Scored:
        if not queries:
            return Scored([], [])
        samples = query_samples(queries, tokenizer, config.max_len)
        cut = [sample.truncated for sample in samples]
        if any(cut):
            log.warning("%d of %d queries are longer than --max_len and were cut", sum(cut), len(cut))
        batch = collate(samples, tokenizer.pad_token_id)
        rewards = forward(engine, batch, config.batch_size or len(batch), packed=False, what="scores")
        return Scored(rewards.tolist(), cut)

    return score


def _leave(number: int, frame: Any) -> None:
    raise SystemExit(0)


if __name__ == "__main__":
    main()
