"""Where processes that talk through torch.distributed find each other."""

from __future__ import annotations

import socket
from datetime import timedelta

import torch.distributed as dist


def open_store(address: str, timeout: timedelta) -> dist.TCPStore:
    """A store that listens on a free port of ``address`` alone, from now on: nobody can take the port meanwhile.

    Left to itself torch listens on every address of the machine.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.create_server((address, 0), family=family)
    port = listener.getsockname()[1]
    listening = listener.detach()  # the store's own from here on
    return dist.TCPStore(address, port, None, True, timeout, wait_for_workers=False, master_listen_fd=listening)
