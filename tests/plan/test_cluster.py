"""A cluster in words."""

from __future__ import annotations

import pytest

from openrlhf.plan.cluster import parse_cluster


@pytest.mark.parametrize(
    ("text", "nodes", "per_node", "gigabytes"),
    [("8xH100-80G", 1, 8, 80), ("2x8xH100-80G", 2, 8, 80), ("4xa100-40g", 1, 4, 40), ("1xH200", 1, 1, 141)],
)
def test_words_become_machines(text: str, nodes: int, per_node: int, gigabytes: int) -> None:
    cluster = parse_cluster(text, "--cluster")
    assert (cluster.nodes, cluster.per_node, cluster.gpus) == (nodes, per_node, nodes * per_node)
    assert cluster.gpu.memory == gigabytes * 10**9


def test_a_cluster_is_shown_as_it_is_written() -> None:
    assert str(parse_cluster("2x8xh100-80", "--cluster")) == "2x8xH100-80G"


@pytest.mark.parametrize("text", ["8", "H100", "0x8xH100", "8x", "8xH100-80GB", "a lot"])
def test_another_spelling_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="--assume .* is not a cluster: write .* as in 8xH100-80G"):
        parse_cluster(text, "--assume")


def test_a_strange_gpu_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(ValueError, match="there is no GPU 'TPU'; known are B200, H200, H100"):
        parse_cluster("8xTPU", "--assume")
