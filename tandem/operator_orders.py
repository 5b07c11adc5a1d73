"""Orders of an operator to a coordinator, asked until answered: twice is as good as once."""

import asyncio
from typing import Any, TypeVar

import zmq.asyncio

from tandem.errors import UnavailableError
from tandem.keys import Keyring
from tandem.messages.client import Malformed
from tandem.messages.membership import DrainAnswer, DrainMember, SetWeights, WeightsAnswer
from tandem.sockets import Link
from tandem.status import operator_link

ASK_AGAIN_S = 1.0
ANSWER_S = 5.0
Answer = TypeVar("Answer", DrainAnswer, WeightsAnswer)


async def ask(
    coordinator: str,
    message: DrainMember | SetWeights,
    kind: type[Answer],
    keys: Keyring | None = None,
    *,
    answer_s: float = ANSWER_S,
) -> Answer:
    """The coordinator's answer. Raises UnavailableError where none comes within `answer_s`."""
    context = zmq.asyncio.Context()
    try:
        link = operator_link(context, kind | Malformed, coordinator, keys)
    except ValueError:
        context.term()
        raise
    answer: Answer | Malformed
    asking = asyncio.create_task(_repeat(link, message))
    try:
        async with asyncio.timeout(answer_s):
            answer = await anext(link.messages())
    except TimeoutError:
        text = link.trouble or f"no coordinator answers at {coordinator} within {answer_s:g} s"
        raise UnavailableError(text, code="unavailable") from None
    finally:
        asking.cancel()
        link.close()
        context.term()
    if isinstance(answer, Malformed):
        text = f"the coordinator at {coordinator} cannot read this message: {answer.message}"
        raise UnavailableError(text, code="unavailable")
    return answer


async def _repeat(link: Link[Any], message: DrainMember | SetWeights) -> None:
    while True:
        link.send(message)
        await asyncio.sleep(ASK_AGAIN_S)
