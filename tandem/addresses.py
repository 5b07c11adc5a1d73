"""Where processes of a deployment listen and are looked for, unless told otherwise."""

COORDINATOR_PORT = 7300
GATEWAY_PORT = 7301
DASHBOARD_PORT = 7400
HTTP_PORT = 8000
DEFAULT_COORDINATOR = f"tcp://127.0.0.1:{COORDINATOR_PORT}"
DEFAULT_GATEWAY = f"tcp://127.0.0.1:{GATEWAY_PORT}"
DEFAULT_DASHBOARD = f"http://127.0.0.1:{DASHBOARD_PORT}"
