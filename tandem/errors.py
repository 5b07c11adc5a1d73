"""What can go wrong for a user of Tandem, as exceptions; one table maps the codes on the wire."""

from tandem.messages.common import ErrorCode


class TandemError(Exception):
    """A request, or the way to the gateway, failed.

    `code` is the wire's error code; `retry_after_s` says when another try may succeed, None where
    the gateway gave no time.
    """

    def __init__(
        self, message: str, *, code: ErrorCode = "internal", retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after_s = retry_after_s


class InvalidRequestError(TandemError):
    """The request cannot be served as it is: change it."""


class ContextTooLongError(InvalidRequestError):
    """Longer than the model's context, or than the KV pool of any node."""


class UnknownModelError(InvalidRequestError):
    """The deployment serves another model."""


class UnknownSlaClassError(InvalidRequestError):
    """The coordinator's config has no such SLA class."""


class UnavailableError(TandemError):
    """Nobody can serve the request now: try again later."""


class OverloadedError(UnavailableError):
    """More requests than the SLA allows; `retry_after_s` says when to come back."""


class RateLimitedError(OverloadedError):
    """The tenant's requests come faster than it may send them; `retry_after_s` is exact."""


class GatewayUnreachableError(UnavailableError):
    """No gateway answers, or it stopped answering while requests were in flight."""


class NodeFailedError(UnavailableError):
    """Nodes failed under the request more often than it may be tried again."""


class SuspectedPoisonError(TandemError):
    """Nodes died under the request, and again where it ran alone: it is not tried any more."""


class DeadlineExceededError(TandemError):
    """The request's own deadline passed before its last token."""


class RequestCancelledError(TandemError):
    """The request was cancelled, and not by the caller of this stream."""


class InternalError(TandemError):
    """A defect of Tandem's; please report it with the request id."""


ERROR_TYPES: dict[ErrorCode, type[TandemError]] = {
    "invalid_request": InvalidRequestError,
    "context_too_long": ContextTooLongError,
    "too_few_pages": ContextTooLongError,
    "unknown_model": UnknownModelError,
    "unknown_sla_class": UnknownSlaClassError,
    "no_prefill_node": UnavailableError,
    "no_decode_node": UnavailableError,
    "not_serving": UnavailableError,
    "incompatible_nodes": UnavailableError,
    "unavailable": UnavailableError,
    "overloaded": OverloadedError,
    "rate_limited": RateLimitedError,
    "suspected_poison": SuspectedPoisonError,
    "node_failed": NodeFailedError,
    "transfer_failed": NodeFailedError,
    "deadline_exceeded": DeadlineExceededError,
    "cancelled": RequestCancelledError,
    "internal": InternalError,
}


def error_from_code(
    code: ErrorCode | None, message: str | None, retry_after_s: float | None = None
) -> TandemError:
    """The exception for an error on the wire; without a code it is `internal`."""
    known = code or "internal"
    text = message or f"the gateway gave no reason beside the code {known!r}"
    return ERROR_TYPES[known](text, code=known, retry_after_s=retry_after_s)
