"""What a caller of the dashboard is told went wrong: the envelope of the gateways' HTTP API."""

from starlette.responses import Response

from coordinator.dashboard.replies import json_response

TYPE_OF_STATUS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    500: "server_error",
    503: "service_unavailable_error",
}
MAX_MESSAGE_CHARS = 1000  # a caller's own text may be in it


class ApiError(Exception):
    """An answer other than the one asked for. `code` is a slug, `param` names a field."""

    def __init__(
        self, status: int, message: str, *, code: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param

    def response(self) -> Response:
        """The error as an answer."""
        error = {
            "message": str(self)[:MAX_MESSAGE_CHARS],
            "type": TYPE_OF_STATUS[self.status],
            "param": self.param,
            "code": self.code,
        }
        headers = {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}
        if self.status == 503:
            headers["Retry-After"] = "1"
        return json_response({"error": error}, status=self.status, headers=headers)
