"""What an HTTP caller is told went wrong: one envelope, the statuses of OpenAI's API."""

from collections.abc import Mapping

from gateway.admission import Rejected
from tandem.messages.client import Done, Refused
from tandem.messages.common import ErrorCode

STATUS_OF: dict[ErrorCode, int] = {
    "invalid_request": 400,
    "context_too_long": 400,
    "unknown_model": 404,
    "unknown_sla_class": 400,
    "no_prefill_node": 503,
    "no_decode_node": 503,
    "not_serving": 503,
    "too_few_pages": 400,
    "incompatible_nodes": 503,
    "overloaded": 429,
    "deadline_exceeded": 504,
    "rate_limited": 429,
    "cancelled": 499,
    "node_failed": 503,
    "transfer_failed": 503,
    "suspected_poison": 500,
    "unavailable": 503,
    "internal": 500,
}
TYPE_OF_STATUS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    411: "invalid_request_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    431: "invalid_request_error",
    499: "cancelled_error",
    500: "server_error",
    501: "not_implemented_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}
MAX_MESSAGE_CHARS = 1000  # a caller's own text may be in it


class ApiError(Exception):
    """An answer other than the one asked for. `param` names the field, `code` is a slug."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s
        self.headers = headers or {}

    @property
    def body(self) -> dict[str, dict[str, str | None]]:
        """The envelope."""
        return {
            "error": {
                "message": str(self)[:MAX_MESSAGE_CHARS],
                "type": TYPE_OF_STATUS[self.status],
                "param": self.param,
                "code": self.code,
            }
        }


def explain(answer: Rejected | Refused | Done) -> ApiError:
    """The error of a request that was refused, or that failed."""
    code: ErrorCode = answer.code or "internal"
    text = str(answer) if isinstance(answer, Rejected) else (answer.message or code)
    return ApiError(STATUS_OF[code], text, code=code, retry_after_s=answer.retry_after_s)
