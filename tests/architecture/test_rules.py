"""House rules that a reader of one file cannot see broken: flags nobody reads, waits without an end, hidden options."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass

import pytest

from openrlhf.config import groups
from openrlhf.config.not_built import NOT_BUILT
from tests.architecture.source import trees

# "file:function" → why this wait needs no deadline of its own.
ENDLESS_BY_DESIGN: dict[str, str] = {
    "models/attention.py:_mask": "a ContextVar answers at once",
    "models/experts.py:record_of": "as above",
}

# Flag → who reads it, if not our code.
READ_BY_OTHERS = {
    "reward_weights": "config/derived.py, which gives each source of rewards its weight",
    "async_train": "config/derived.py, which says how many rollouts are asked for ahead",
    "async_queue_size": "config/derived.py, with --async_train",
    "critic_pretrain": "config/derived.py, which says where the critic starts",
    "ref_pretrain": "config/derived.py, which says where the reference of DPO is",
    "ema_beta": "config/derived.py, which says whether there is an average",
    "enable_ema": "config/derived.py, as ema_beta",
    "eval_temperature": "config/derived.py, which says how an evaluation samples",
    "local_rank": "the DeepSpeed launcher adds it to every command line and says the same in the environment",
}

TIMEOUTS = {"timeout", "timeout_s", "timeout_seconds", "deadline"}
ALWAYS_NEED_TIMEOUT = {
    "ray.get",
    "ray.wait",
    "requests.get",
    "requests.post",
    "requests.request",
    "httpx.get",
    "httpx.post",
    "urllib.request.urlopen",
    "urlopen",
    "socket.create_connection",
    "subprocess.run",
    "subprocess.call",
    "subprocess.check_call",
    "subprocess.check_output",
    "dist.init_process_group",
    "torch.distributed.init_process_group",
    "wait",  # of concurrent.futures
    "concurrent.futures.wait",
    "as_completed",
    "concurrent.futures.as_completed",
    "dist.new_group",
    "dist.new_subgroups",
}
# Methods that wait for ever when they get no argument: event.wait(), thread.join(), queue.get(), future.result().
ENDLESS_WITHOUT_ARGUMENT = {"wait", "join", "get", "result", "acquire", "recv"}


def test_every_flag_is_read_or_refused() -> None:
    """A field of a config group is read as an attribute outside config/, or stands in NOT_BUILT."""
    read = {
        node.attr
        for path, tree in trees().items()
        if not path.startswith("config/")
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }
    unread = [
        f"{group.__name__}.{field.name}"
        for group in vars(groups).values()
        if isinstance(group, type) and is_dataclass(group)
        for field in fields(group)
        if field.name not in read | set(NOT_BUILT) | set(READ_BY_OTHERS)
    ]
    assert not unread, unread


def test_flags_that_are_refused_exist() -> None:
    declared = {
        field.name
        for group in vars(groups).values()
        if isinstance(group, type) and is_dataclass(group)
        for field in fields(group)
    }
    assert set(NOT_BUILT) <= declared


def test_every_wait_has_a_deadline() -> None:
    endless = {
        f"{path}:{function}": line
        for path, tree in trees().items()
        for function, call in calls(tree)
        for line in [call.lineno]
        if waits_for_ever(call)
    }
    assert set(endless) == set(ENDLESS_BY_DESIGN), endless


def calls(tree: ast.Module) -> Iterator[tuple[str, ast.Call]]:
    """Every call of a file with the function (or <module>) that it stands in."""
    todo: list[tuple[str, ast.AST]] = [("<module>", tree)]
    while todo:
        function, node = todo.pop()
        if isinstance(node, ast.Call):
            yield function, node
        inside = node.name if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else function
        todo += [(inside, child) for child in ast.iter_child_nodes(node)]


def waits_for_ever(call: ast.Call) -> bool:
    keywords = {keyword.arg for keyword in call.keywords}
    if keywords & TIMEOUTS:
        return False
    if ast.unparse(call.func) in ALWAYS_NEED_TIMEOUT or ast.unparse(call.func).endswith(".communicate"):
        return True
    if not isinstance(call.func, ast.Attribute) or call.func.attr not in ENDLESS_WITHOUT_ARGUMENT:
        return False
    return "block" in keywords or not (call.args or call.keywords)


@pytest.mark.parametrize(
    ("text", "endless"),
    [
        ("ray.get(x)", True),
        ("ray.get(x, timeout=t)", False),
        ("requests.post(url, json=body)", True),
        ("requests.post(url, json=body, timeout=3)", False),
        ("subprocess.run(['ls'])", True),
        ("event.wait()", True),
        ("event.wait(3)", False),
        ("thread.join()", True),
        ("', '.join(names)", False),
        ("queue.get()", True),
        ("queue.get(block=True)", True),
        ("queue.get(timeout=3)", False),
        ("settings.get('name')", False),
        ("future.result()", True),
        ("process.communicate(text)", True),
        ("process.communicate(text, timeout=3)", False),
        ("wait(futures)", True),
        ("dist.new_group([0, 1])", True),
    ],
)
def test_the_rule_on_waits_tells_them_apart(text: str, endless: bool) -> None:
    call = ast.parse(text, mode="eval").body
    assert isinstance(call, ast.Call)
    assert waits_for_ever(call) is endless


def test_no_bare_except() -> None:
    assert not places(is_bare_except)


def test_no_option_is_fetched_by_name() -> None:
    """``getattr(args, "flag", default)`` hides a flag from types, from --help and from the test above."""
    assert not places(is_option_lookup)


def places(wrong: Callable[[ast.AST], bool]) -> list[str]:
    """file:line of every node that is wrong."""
    return [f"{path}:{node.lineno}" for path, tree in trees().items() for node in ast.walk(tree) if wrong(node)]


def is_bare_except(node: ast.AST) -> bool:
    return isinstance(node, ast.ExceptHandler) and node.type is None


def is_option_lookup(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Call)
        and ast.unparse(node.func) in {"getattr", "hasattr"}
        and ast.unparse(node.args[0]).rpartition(".")[2] in {"args", "config", "cfg"}
        and isinstance(node.args[1], ast.Constant)
    )


def test_no_file_is_called_utils() -> None:
    assert not [path for path in trees() if "util" in path or "helper" in path]


# "file:function" → why what runs there comes from nobody else.
RUNS_WHAT_IT_READS: dict[str, str] = {
    "backends/vllm_channels.py:receive": "handles of GPU memory, from the run's own actor over the run's own store",
}


def test_nothing_that_is_read_is_run() -> None:
    found = {
        f"{path}:{function}"
        for path, tree in trees().items()
        for function, call in calls(tree)
        if runs_what_it_reads(call)
    }
    assert found == set(RUNS_WHAT_IT_READS), found


def runs_what_it_reads(call: ast.Call) -> bool:
    """Unpickling, a shell, evaluated text, or ``torch.load`` without ``weights_only=True``."""
    name = ast.unparse(call.func)
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    if name == "torch.load":
        return given.get("weights_only") != "True"
    if name == "yaml.load" or given.get("shell") == "True" or given.get("weights_only") == "False":
        return True
    if given.get("trust_remote_code") == "True":
        return True
    unpicklers = {f"{library}.{verb}" for library in PICKLES for verb in ("load", "loads", "Unpickler")}
    return name in unpicklers | {"eval", "exec", "os.system", "os.popen"}


PICKLES = ("pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve")


@pytest.mark.parametrize(
    ("text", "runs"),
    [
        ("pickle.loads(x)", True),
        ("torch.load(path)", True),
        ("torch.load(path, weights_only=False)", True),
        ("torch.load(path, weights_only=True)", False),
        ("subprocess.run('ls', shell=True, timeout=3)", True),
        ("subprocess.run(['ls'], timeout=3)", False),
        ("AutoModel.from_pretrained(path, trust_remote_code=True)", True),
        ("AutoModel.from_pretrained(path, trust_remote_code=config.trust_remote_code)", False),
        ("yaml.load(text)", True),
        ("yaml.safe_load(text)", False),
        ("model.eval()", False),
    ],
)
def test_the_rule_on_code_tells_them_apart(text: str, runs: bool) -> None:
    call = ast.parse(text, mode="eval").body
    assert isinstance(call, ast.Call)
    assert runs_what_it_reads(call) is runs
