"""Run by the 2.x client's own interpreter: one question on standard input, the answer as JSON on standard output."""

import asyncio
import json
import sys


def ask(question: dict) -> dict:
    import dashscope  # noqa: PLC0415  only this interpreter has this version

    given = {
        "api_key": question["api_key"],
        "base_url": question["base_url"],
        "max_retries": 0,
        "raise_on_error": False,
    }
    options = question["options"]
    if question["asynchronous"]:

        async def asked() -> object:
            client = dashscope.AsyncClient(**given)
            try:
                return await client.embeddings.create(**options)
            finally:
                await client.aclose()

        answer = asyncio.run(asked())
    else:
        client = dashscope.Client(**given)
        answer = client.embeddings.create(**options)
        client.close()
    return json.loads(json.dumps(answer, default=lambda value: getattr(value, "__dict__", str(value))))


if __name__ == "__main__":
    json.dump(ask(json.load(sys.stdin)), sys.stdout)
