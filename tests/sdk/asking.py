"""The SDKs, each as a function that asks for the embeddings of texts and returns what its caller would have got."""

import asyncio
import json
import os
import secrets
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import dashscope
import openai

from tests.sdk.rig import Told

MODEL = "text-embedding-v4"
KEY = "sk-sdk"

ROOT = Path(__file__).parents[2]
PYTHON2 = ROOT / ".venv-dashscope2" / "bin" / "python"
_ENDING_S = 10.0

Ask = Callable[..., Told]
"""``ask(url, texts, **options)``; *url* is the root of the vendor or of the proxy."""

# What one JSON writer escapes and another does not, and what looks alike without being equal.
_SPELLINGS = (
    "衣服的质量杠杠的",
    "é is not e\u0301",
    'quotes " and \\ and /',
    "two\nlines\tand a tab",
    "😀 beyond the first plane",
    "<b>&amp;'</b>=",
    "  blanks  ",
    "\u2028\x7f\x01",
)


def fresh(count: int) -> list[str]:
    """Texts that nobody has asked for, of all spellings in turn."""
    return [f"{_SPELLINGS[number % len(_SPELLINGS)]}{secrets.token_hex(8)}" for number in range(count)]


def small(headers: Mapping[str, str]) -> dict[str, str]:
    """*headers* with lower-case names."""
    return {name.lower(): value for name, value in headers.items()}


def without_ids(value: Any) -> Any:
    """*value* (JSON) without request ids at any depth."""
    if isinstance(value, dict):
        return {name: without_ids(member) for name, member in value.items() if name not in ("request_id", "id")}
    return [without_ids(member) for member in value] if isinstance(value, list) else value


def told1(answer: Any) -> Told:
    """Any response object of the 1.x SDK."""
    value = (type(answer).__name__, answer.status_code, answer.code, answer.message, answer.output)
    return Told(value, answer.usage, None if answer.headers is None else small(answer.headers))


def dashscope1(url: str, texts: Any, **options: Any) -> Told:
    """The 1.x SDK, repointed at run time as its users do."""
    dashscope.base_http_api_url = f"{url}/api/v1"
    return told1(dashscope.TextEmbedding.call(**{"model": MODEL, "api_key": KEY, "input": texts, **options}))


class OpenAi:
    """openai-python's synchronous client; one per address, as their making takes longer than their work."""

    def __init__(self) -> None:
        self._clients: dict[str, openai.OpenAI] = {}

    def client(self, url: str) -> openai.OpenAI:
        """The client for *url*."""
        if url not in self._clients:
            self._clients[url] = openai.OpenAI(api_key=KEY, base_url=f"{url}/compatible-mode/v1", max_retries=0)
        return self._clients[url]

    def __call__(self, url: str, texts: Any, **options: Any) -> Told:
        client = self.client(url)
        if "api_key" in options:
            client = client.with_options(api_key=options.pop("api_key"))
        try:
            answer = client.embeddings.with_raw_response.create(**{"model": MODEL, "input": texts, **options})
        except openai.APIStatusError as error:
            return openai_error(error)
        return openai_told(answer)

    def close(self) -> None:
        """Close all connections."""
        for client in self._clients.values():
            client.close()
        self._clients.clear()


def openai_async(url: str, texts: Any, **options: Any) -> Told:
    """openai-python's asynchronous client."""

    async def work() -> Told:
        given: dict[str, Any] = {"api_key": options.pop("api_key", KEY), "base_url": f"{url}/compatible-mode/v1"}
        async with openai.AsyncOpenAI(**given, max_retries=0) as client:
            try:
                answer = await client.embeddings.with_raw_response.create(**{"model": MODEL, "input": texts, **options})
            except openai.APIStatusError as error:
                return openai_error(error)
            return openai_told(answer)

    return asyncio.run(work())


def openai_told(answer: Any) -> Told:
    """A raw response of the openai SDK, with what it makes of it."""
    headers = small(answer.headers)
    try:
        # No warnings: base64 by name stays text, which the client's own types do not foresee.
        content = without_ids(answer.parse().model_dump(warnings=False))
    except ValueError as error:  # status 200 without vectors
        return Told((type(error).__name__, str(error), without_ids(answer.http_response.json())), headers=headers)
    return Told(content, content.pop("usage", None), headers)


def openai_error(error: openai.APIStatusError) -> Told:
    """What it raises instead."""
    value = (type(error).__name__, error.status_code, error.code, error.type, error.param, without_ids(error.body))
    return Told(value, headers=small(error.response.headers))


class Dashscope2:
    """
    The 2.x client, which cannot be installed beside the other SDKs: questions go to a process of its own.

    The process ends with its standard input, and so with this one, however that ends.
    """

    def __init__(self, home: Path) -> None:
        assert PYTHON2.exists(), f"the 2.x client's environment {PYTHON2.parents[1].name} is missing: run `make test`"
        self._process = subprocess.Popen(
            [PYTHON2, Path(__file__).with_name("client2.py")],
            # Nothing of the developer's settings for the SDK.
            env={"PATH": os.environ["PATH"], "HOME": str(home), "NO_PROXY": "127.0.0.1", "PYTHONUTF8": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def ask(
        self, url: str, method: str, *, asynchronous: bool = False, client: dict[str, Any] | None = None, **options: Any
    ) -> Told:
        """Call *method* (``embeddings.create``, ...) of a client for *url* that is made for this one question."""
        question = {
            "asynchronous": asynchronous,
            "client": {"api_key": KEY, "base_url": f"{url}/api/v1", "max_retries": 0, **(client or {})},
            "method": method,
            "options": options,
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question).encode() + b"\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the 2.x client's process has ended; its reason is on standard error"
        answer = json.loads(line)
        headers = small(answer.pop("headers"))
        content = without_ids(answer)
        usage = (content.get("answer") or {}).pop("usage", None)
        return Told(content, usage, headers or None)

    def embed(self, url: str, texts: Any, **options: Any) -> Told:
        """``Client``."""
        return self.ask(url, "embeddings.create", **self._embedding(texts, options))

    def embed_async(self, url: str, texts: Any, **options: Any) -> Told:
        """``AsyncClient``."""
        return self.ask(url, "embeddings.create", asynchronous=True, **self._embedding(texts, options))

    def _embedding(self, texts: Any, options: dict[str, Any]) -> dict[str, Any]:
        return {"model": MODEL, "input": texts, **options}

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(_ENDING_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
