"""What no file may contain: ways to run data as code, silent failures, tests that check nothing.

A lint over syntax trees that no `noqa` comment can switch off.
"""

import ast
import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = (
    "coordinator", "decode_node", "engine", "gateway", "kernels", "kv_transfer", "loadgen", "node",
    "prefill_node", "scheduling", "simulator", "tandem",
)  # fmt: skip
FORBIDDEN_MODULES = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve", "_pickle"}
FORBIDDEN_CALLS = {
    "eval", "exec", "compile", "__import__", "torch.load", "torch.save", "torch.jit.load",
    "torch.hub.load", "yaml.load", "yaml.unsafe_load", "os.system", "os.popen",
    "multiprocessing.Queue", "multiprocessing.Pipe",
}  # fmt: skip
FORBIDDEN_METHODS = {"recv_pyobj", "send_pyobj", "unsafe_load"}
FORBIDDEN_KEYWORDS = {"allow_pickle", "ext_hook", "shell", "trust_remote_code"}
# Who may open a network socket: everybody else gets keys, limits and loopback from these.
SOCKET_MAKERS = {
    "kv_transfer/door.py", "kv_transfer/zmq_frames.py", "node/kv_events.py", "tandem/connection.py",
    "tandem/sockets.py", "tandem/zap.py",
}  # fmt: skip
ALL_INTERFACES = {"0.0.0.0", "::", "*", "tcp://*"}
FROM_TRANSFORMERS = {"AutoConfig", "AutoTokenizer"}


@functools.cache
def parse(path: Path) -> ast.Module:
    """The syntax tree of a file: every rule below walks every file."""
    return ast.parse(path.read_bytes())


def python_files(*folders: str) -> list[Path]:
    """Python files below the folders; scripts are recognised by their first line."""
    found = []
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*")):
            if not path.is_file() or "__pycache__" in path.parts:
                continue
            is_script = path.suffix == "" and b"python" in path.read_bytes()[:60]
            if path.suffix == ".py" or is_script:
                found.append(path)
    return found


def imported_names(tree: ast.AST) -> Iterator[tuple[str, ast.stmt]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((f"{node.module}.{alias.name}", node) for alias in node.names)


def data_as_code(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Imports and calls by which bytes from elsewhere could run here."""
    for name, statement in imported_names(tree):
        if name.split(".")[0] in FORBIDDEN_MODULES or name in FORBIDDEN_CALLS:
            yield statement.lineno, f"imports {name}"
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called in FORBIDDEN_CALLS or called.rsplit(".", 1)[-1] in FORBIDDEN_METHODS:
            yield node.lineno, f"calls {called}"
        for keyword in node.keywords:
            is_false = isinstance(keyword.value, ast.Constant) and not keyword.value.value
            if keyword.arg in FORBIDDEN_KEYWORDS and not is_false:
                yield node.lineno, f"passes {keyword.arg}={ast.unparse(keyword.value)}"


def silent_failures(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """`except:` and handlers of everything that do nothing."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.ExceptHandler):
            continue
        if node.type is None:
            yield node.lineno, "bare except: name what is expected"
            continue
        is_broad = ast.unparse(node.type) in {"Exception", "BaseException"}
        if is_broad and all(isinstance(statement, ast.Pass) for statement in node.body):
            yield node.lineno, "swallows every error: name what is expected, or say so"


def network_sockets(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """ZeroMQ sockets that are made, and addresses that every machine reaches.

    Half of the known holes in systems like this one are a socket that somebody opened beside the
    guarded ones, on all interfaces (SECURITY.md).
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            arguments = {ast.unparse(a).rsplit(".", 1)[-1] for a in node.args}
            called = ast.unparse(node.func).rsplit(".", 1)[-1]
            if called == "socket" and arguments & {"ROUTER", "DEALER", "REP", "PULL", "PUB", "SUB"}:
                yield node.lineno, f"makes a socket: {ast.unparse(node)}"
            if called == "bind" and any(
                isinstance(part, ast.Constant)
                and any(str(part.value).startswith(wide) for wide in ALL_INTERFACES)
                for part in ast.walk(node)
            ):
                yield node.lineno, f"listens on all interfaces: {ast.unparse(node)}"


def imports_in_functions(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for _, statement in imported_names(node):
                yield statement.lineno, f"import inside {node.name}: fix the arrow instead"


def foreign_models(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Anything from transformers but AutoConfig and AutoTokenizer (`kernels/` is why)."""
    for name, statement in imported_names(tree):
        top, _, rest = name.partition(".")
        if top == "transformers" and rest not in FROM_TRANSFORMERS:
            yield statement.lineno, f"imports {name}"


def untyped_functions(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Functions without full annotations, but for the bodies of Triton kernels."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if any("triton." in ast.unparse(decorator) for decorator in node.decorator_list):
            continue
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        bare = [a.arg for a in arguments if a.annotation is None and a.arg not in {"self", "cls"}]
        if bare or node.returns is None:
            yield node.lineno, f"{node.name} lacks annotations: {bare or 'return'}"


def findings(files: list[Path], rule: Callable[[ast.AST], Iterator[tuple[int, str]]]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{line} {what}"
        for path in files
        for line, what in rule(parse(path))
    ]


@pytest.mark.parametrize(
    "rule", [data_as_code, silent_failures, imports_in_functions], ids=lambda rule: rule.__name__
)
def test_no_file_breaks_the_rule(rule: Callable[[ast.AST], Iterator[tuple[int, str]]]) -> None:
    found = findings(python_files(*OURS, "scripts", "benchmarks", "tests"), rule)
    assert not found, "\n".join(found)


def test_network_sockets_are_made_in_few_places() -> None:
    files = [f for f in python_files(*OURS) if str(f.relative_to(ROOT)) not in SOCKET_MAKERS]
    found = findings(files, network_sockets)
    assert not found, "use tandem.sockets.Server and Link:\n" + "\n".join(found)


def test_production_takes_only_two_names_from_transformers() -> None:
    found = findings(python_files(*OURS), foreign_models)
    assert not found, "\n".join(found)


def test_functions_in_kernels_are_annotated() -> None:
    """The type checker is relaxed there for the sake of Triton's bodies, so we look ourselves."""
    found = findings(python_files("kernels"), untyped_functions)
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("rule", "source"),
    [
        (data_as_code, "import pickle"),
        (data_as_code, "from torch import load"),
        (data_as_code, "socket.recv_pyobj()"),
        (data_as_code, "np.load(path, allow_pickle=True)"),
        (data_as_code, "AutoConfig.from_pretrained(name, trust_remote_code=flag)"),
        (silent_failures, "try:\n    f()\nexcept Exception:\n    pass"),
        (silent_failures, "try:\n    f()\nexcept:\n    raise"),
        (data_as_code, "msgpack.unpackb(data, ext_hook=f)"),
        (network_sockets, "context.socket(zmq.PULL)"),
        (network_sockets, "self.context.socket(zmq.ROUTER)"),
        (network_sockets, "sock.bind('tcp://*:5555')"),
        (network_sockets, "server.bind('0.0.0.0', 5555)"),
        (imports_in_functions, "def f():\n    import os"),
        (foreign_models, "from transformers import LlamaForCausalLM"),
        (foreign_models, "import transformers"),
        (untyped_functions, "def f(x): ..."),
    ],
)
def test_rules_find_what_they_forbid(
    rule: Callable[[ast.AST], Iterator[tuple[int, str]]], source: str
) -> None:
    assert list(rule(ast.parse(source)))


def asserting_names(tree: ast.Module) -> set[str]:
    """Functions of a file that check something, directly or through another of them."""
    functions = {
        node.name: node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    found: set[str] = set()
    grown = True
    while grown:
        checks = {name for name in functions.keys() - found if _checks(functions[name], found)}
        grown = bool(checks)
        found |= checks
    return found


def _checks(function: ast.AST, asserting: set[str]) -> bool:
    for node in ast.walk(function):
        if isinstance(node, ast.Assert):
            return True
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func).rsplit(".", 1)[-1]
            if called in asserting | {"raises", "fail", "warns"} or called.startswith("assert_"):
                return True
    return False


def test_every_test_asserts_something() -> None:
    idle = []
    for path in python_files("tests"):
        tree = parse(path)
        asserting = asserting_names(tree)
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if node.name.startswith("test_") and node.name not in asserting:
                idle.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}")
    assert not idle, "these tests cannot fail:\n" + "\n".join(idle)


def test_no_test_is_switched_off() -> None:
    switches = {"skip", "skipif", "xfail", "importorskip"}
    off = [
        f"{path.relative_to(ROOT)}:{node.lineno} {ast.unparse(node)}"
        for path in python_files("tests")
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Attribute)
        and node.attr in switches
        and ast.unparse(node.value) in {"pytest", "pytest.mark"}
    ]
    assert not off, "\n".join(off)
