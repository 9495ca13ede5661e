"""A meeting place of processes is open to no other machine, and its port is its own from the first."""

from __future__ import annotations

import socket
from datetime import timedelta

import psutil
import pytest
import torch.distributed as dist

from openrlhf.backends.meeting import open_store

LIMIT = timedelta(seconds=120)


def test_it_listens_on_its_address_alone() -> None:
    before = {place.laddr for place in psutil.Process().net_connections("inet") if place.status == psutil.CONN_LISTEN}
    store = open_store("127.0.0.1", LIMIT)
    after = {place.laddr for place in psutil.Process().net_connections("inet") if place.status == psutil.CONN_LISTEN}
    assert after - before == {("127.0.0.1", store.port)}
    with pytest.raises(OSError, match="in use"):
        socket.create_server(("127.0.0.1", store.port), reuse_port=False)
    visitor = dist.TCPStore("127.0.0.1", store.port, None, False, LIMIT, wait_for_workers=False)
    visitor.set("who", "me")
    assert store.get("who") == b"me"
