"""The prompts of a completion: one or several, text or token ids. Pure."""

from collections.abc import Sequence

from gateway.admission import Offer
from gateway.http.errors import ApiError
from gateway.openai.requests import MAX_PROMPTS, CompletionRequest
from tandem.frames import TokenIds

Prompt = str | TokenIds


def prompts_of(request: CompletionRequest, offer: Offer) -> list[Prompt]:
    """Each with at least one character or token. Raises ApiError."""
    given = request.prompt
    if isinstance(given, str):
        return [_text(given)]
    if given and all(isinstance(each, int) for each in given):
        return [_ids([each for each in given if isinstance(each, int)], offer)]
    if not 1 <= len(given) <= MAX_PROMPTS:
        text = f"prompt has {len(given)} entries, but must have 1 to {MAX_PROMPTS}: send several "
        raise ApiError(400, f"{text}requests", param="prompt")
    if len({type(each) for each in given}) != 1:
        text = "prompt mixes text, token ids and lists of them: use one form"
        raise ApiError(400, text, param="prompt")
    return [_one(each, offer) for each in given]


def _one(given: str | int | Sequence[int], offer: Offer) -> Prompt:
    assert not isinstance(given, int), "a list of numbers is one prompt"
    return _text(given) if isinstance(given, str) else _ids(given, offer)


def _text(text: str) -> str:
    if not text:
        raise ApiError(400, "the prompt is empty: give at least one character", param="prompt")
    return text


def _ids(ids: Sequence[int], offer: Offer) -> TokenIds:
    if not ids:
        raise ApiError(400, "the prompt is empty: give at least one token", param="prompt")
    lowest, highest = min(ids), max(ids)
    if lowest < 0 or highest >= offer.vocab_size:
        wrong = lowest if lowest < 0 else highest
        text = (
            f"the prompt has the token id {wrong}, and the model's are 0 to {offer.vocab_size - 1}"
        )
        raise ApiError(400, f"{text}: use this model's tokenizer", param="prompt")
    return TokenIds(ids)
