"""Where processes that talk through torch.distributed find each other."""

from __future__ import annotations

import os
import socket
from datetime import timedelta

import torch.distributed as dist
from torch.distributed import distributed_c10d


def open_store(address: str, timeout: timedelta) -> dist.TCPStore:
    """A store that listens on a free port of ``address`` alone, from now on: nobody can take the port meanwhile.

    Left to itself torch listens on every address of the machine.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.create_server((address, 0), family=family)
    port = listener.getsockname()[1]
    listening = listener.detach()  # the store's own from here on
    return dist.TCPStore(address, port, None, True, timeout, wait_for_workers=False, master_listen_fd=listening)


def limit_waits(timeout: timedelta) -> None:
    """Let collectives of every group of this process fail that wait longer. A group that a library made, as DeepSpeed
    makes its own, has torch's limit of 10 or 30 minutes until then."""
    for group in list(distributed_c10d._world.pg_map):
        distributed_c10d._set_pg_timeout(timeout, group)


def agents_store(timeout: timedelta) -> dist.Store | None:
    """The store that torchrun keeps while it starts ranks again, None without one. Each life of them has a part of its
    own: torch would find the addresses of the dead there, and wait for these."""
    life = os.environ.get("TORCHELASTIC_RESTART_COUNT")
    if life is None or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return dist.PrefixStore(f"life {life}", dist.TCPStore(address, port, None, False, timeout, wait_for_workers=False))
