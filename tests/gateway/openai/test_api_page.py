"""docs/api.md names every field that the endpoints know."""

from pathlib import Path

import pytest

from gateway.openai.requests import ChatRequest, CompletionRequest

PAGE = Path(__file__).resolve().parents[3] / "docs" / "api.md"


@pytest.mark.parametrize("request_type", [ChatRequest, CompletionRequest])
def test_every_field_is_on_the_page(request_type: type[ChatRequest | CompletionRequest]) -> None:
    text = PAGE.read_text(encoding="utf-8")
    missing = [name for name in request_type.__struct_fields__ if f"`{name}`" not in text]
    assert not missing
