"""OpenAI's own client: an answer, a stream, several choices, JSON that keeps a schema, a tool call.

python examples/openai_sdk.py http://127.0.0.1:8000
"""

import sys

import openai

COLOUR = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "blue"]}},
    "required": ["colour"],
    "additionalProperties": False,
}
WEATHER = {
    "name": "weather",
    "parameters": {
        "properties": {"city": {"enum": ["Rome", "Oslo"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


def main(gateway: str) -> None:
    """Everything once. With keys in the deployment, `api_key` is one of `tandem keys bearer`."""
    with openai.OpenAI(base_url=f"{gateway}/v1", api_key="none") as client:
        model = client.models.list().data[0].id
        question = [{"role": "user", "content": "write a function that adds two numbers"}]

        answer = client.chat.completions.create(model=model, messages=question, max_tokens=20)
        print(answer.choices[0].message.content, answer.usage)

        stream = client.chat.completions.create(
            model=model,
            messages=question,
            max_tokens=20,
            stream=True,
            extra_body={"sla_class": "interactive"},
        )
        for chunk in stream:
            print(chunk.choices[0].delta.content or "", end="", flush=True)
        print()

        several = client.completions.create(model=model, prompt="def f(", n=3, seed=7, max_tokens=8)
        print([choice.text for choice in several.choices])

        schema = {"type": "json_schema", "json_schema": {"name": "colour", "schema": COLOUR}}
        answer = client.chat.completions.create(
            model=model, messages=question, response_format=schema, max_tokens=200
        )
        print(answer.choices[0].message.content)

        answer = client.chat.completions.create(
            model=model,
            messages=question,
            tools=[{"type": "function", "function": WEATHER}],
            tool_choice={"type": "function", "function": {"name": "weather"}},
            max_tokens=200,
        )
        print(answer.choices[0].message.tool_calls)


if __name__ == "__main__":
    main(sys.argv[1])
