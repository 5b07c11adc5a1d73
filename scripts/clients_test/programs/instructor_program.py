"""instructor: answers as pydantic models, by every mode that a server like this one can serve."""

from typing import Literal

import instructor
import openai
from pydantic import BaseModel, ConfigDict

from scripts.clients_test.programs.cases import run

ASK = [{"role": "user", "content": "which colour?"}]


class Closed(BaseModel):
    """Without further properties: the demo model would invent them until its tokens are used up."""

    model_config = ConfigDict(extra="forbid")


class Shade(Closed):
    """How dark."""

    level: Literal[1, 2]


class Colour(Closed):
    """A colour, with a part that is referred to."""

    colour: Literal["red", "blue"]
    shade: Shade


def ask(gateway: str, mode: instructor.Mode) -> None:
    with openai.OpenAI(base_url=f"{gateway}/v1", api_key="none", max_retries=0) as plain:
        client = instructor.from_openai(plain, mode=mode)
        found = client.chat.completions.create(
            model="demo", messages=ASK, response_model=Colour, max_tokens=800, max_retries=1
        )
    assert found.colour in ("red", "blue") and found.shade.level in (1, 2)


def tools(gateway: str) -> None:
    ask(gateway, instructor.Mode.TOOLS)


def tools_strict(gateway: str) -> None:
    ask(gateway, instructor.Mode.TOOLS_STRICT)


def json_schema(gateway: str) -> None:
    ask(gateway, instructor.Mode.JSON_SCHEMA)


if __name__ == "__main__":
    run([tools, tools_strict, json_schema])
