"""Guards of the operators' dashboard."""

from scripts.mutation.mutation import Mutation

API = "tests/coordinator/dashboard/test_api.py"
RECORDS = "tests/coordinator/dashboard/test_records.py"
STREAM = "tests/coordinator/dashboard/test_stream.py"
HISTORY = "tests/coordinator/dashboard/test_history.py"

GUARDS = (
    Mutation(
        "dashboard-names",
        "a name on the internet that points here shows nothing to its page",
        "coordinator/dashboard/access.py",
        'return name == self._name or "." not in name or _is_address(name)',
        "return True",
        (API,),
    ),
    Mutation(
        "dashboard-origin",
        "no page from elsewhere gives orders",
        "coordinator/dashboard/access.py",
        'if origin is not None and origin.partition("://")[2] != request.headers.get("host"):',
        "if False:",
        (API,),
    ),
    Mutation(
        "dashboard-role",
        "a client's key does not open the dashboard",
        "coordinator/dashboard/access.py",
        'if found[1] != "operator":',
        "if False:",
        (API,),
    ),
    Mutation(
        "dashboard-orders-are-json",
        "a form cannot give orders",
        "coordinator/dashboard/bodies.py",
        'if request.headers.get("content-type", "").partition(";")[0].strip().lower() != JSON:',
        "if False:",
        (API,),
    ),
    Mutation(
        "dashboard-ends-once",
        "operators see the end of a request once, however often it is reported",
        "coordinator/dashboard/observer.py",
        "if self.records.is_ended(report.request_id):",
        "if False:",
        (RECORDS,),
    ),
    Mutation(
        "dashboard-slow-reader",
        "who watches and reads nothing is cut",
        "coordinator/dashboard/streaming.py",
        "async with asyncio.timeout(SLOW_S):",
        "async with asyncio.timeout(None):",
        (STREAM,),
    ),
    Mutation(
        "history-of-others",
        "the database of another program is left alone",
        "coordinator/dashboard/history.py",
        "if num_tables and application != APPLICATION_ID:",
        "if False:",
        (HISTORY,),
    ),
)
