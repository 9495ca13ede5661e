import time
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from openrlhf.training.roles import Absent, done, gather


def test_gather_keeps_the_order():
    assert gather(done(1), done("b"), Absent().values(None), deadline_s=1) == [1, "b", None]


def test_gather_raises_the_first_failure_without_waiting_for_the_others():
    never: Future[int] = Future()
    with ThreadPoolExecutor(1) as pool:

        def fail() -> None:
            time.sleep(0.05)
            raise OSError("the engine is gone")

        with pytest.raises(OSError, match="the engine is gone"):
            gather(never, pool.submit(fail), deadline_s=60)


def test_gather_ends_at_its_deadline():
    with pytest.raises(TimeoutError, match="1 of 2 calls did not answer"):
        gather(done(1), Future(), deadline_s=0.05)
