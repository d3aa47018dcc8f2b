"""
Run by the 2.x client's own interpreter: a question per line on standard input, an answer per line on standard output.

A client is made for each question. Answers are what its caller would see, as JSON; so are the client's exceptions.
"""

import asyncio
import json
import operator
import sys

import dashscope
from dashscope.v2.errors import DashScopeError


def ask(question: dict) -> dict:
    call = operator.attrgetter(question["method"])
    try:
        if question["asynchronous"]:
            return shown(asyncio.run(asked(question, call)))
        with dashscope.Client(**question["client"]) as client:
            return shown(call(client)(**question["options"]))
    except DashScopeError as error:
        said = {"type": type(error).__name__, "status_code": error.status_code, "code": error.code}
        return {"error": {**said, "message": error.message, "body": error.body}, "headers": dict(error.headers)}
    except ValueError as error:  # an answer that is not of the client's types
        return {"error": {"type": type(error).__name__, "message": str(error)}, "headers": {}}


async def asked(question: dict, call: operator.attrgetter) -> object:
    async with dashscope.AsyncClient(**question["client"]) as client:
        return await call(client)(**question["options"])


def shown(answer: object) -> dict:
    content = answer.model_dump()
    return {"headers": content.pop("headers", {}), "answer": content}


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(ask(json.loads(line))), flush=True)
