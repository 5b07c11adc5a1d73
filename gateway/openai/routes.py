"""The endpoints of this folder, as the door serves them."""

from gateway.http.routes import Route
from gateway.http.services import Services
from gateway.openai.answers import ChatAnswer, CompletionAnswer
from gateway.openai.chat import Chats
from gateway.openai.completions import Completions
from gateway.openai.requests import ChatRequest, CompletionRequest
from gateway.openai.serving import Generation


def generation_routes(services: Services) -> list[Route]:
    """Chats and completions."""
    generation = Generation(services)
    return [
        Route(
            method="POST",
            path="/v1/chat/completions",
            handler=Chats(generation).answer,
            summary="Answer a conversation",
            request=ChatRequest,
            response=ChatAnswer,
            is_streamed=True,
        ),
        Route(
            method="POST",
            path="/v1/completions",
            handler=Completions(generation).answer,
            summary="Continue one or several prompts",
            request=CompletionRequest,
            response=CompletionAnswer,
            is_streamed=True,
        ),
    ]
