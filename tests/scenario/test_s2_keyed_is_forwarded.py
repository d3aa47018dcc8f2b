"""S2: whatever may change the answer is in the key, and the key is made of what is sent (Kettle 2018, 2020)."""

# ruff: noqa: SIM905 (words are easier to read as a sentence)

import itertools
import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

from tests.scenario.telling import COMPATIBLE, JSON, NATIVE, Lines, bearer, heard, state, telling, told
from tests.support.proxy_process import ProxyProcess
from tests.support.raw_client import RawClient
from tests.support.raw_upstream import RawUpstream

Members = tuple[tuple[str, str], ...]
CALLER = bearer("sk-a")


@dataclass(frozen=True)
class Ask:
    """A request in parts; texts, names and values are spelled in JSON already."""

    texts: tuple[str, ...]
    compatible: bool = False
    lines: Lines = CALLER
    query: str = ""
    top: Members = (("model", '"text-embedding-v4"'),)
    inner: Members = (("dimension", "64"), ("text_type", '"query"'))
    beside: Members = ()
    blank: str = ""

    @property
    def target(self) -> str:
        return (COMPATIBLE if self.compatible else NATIVE) + self.query

    @property
    def body(self) -> bytes:
        texts = self._list(self.texts)
        if self.compatible:
            fields = (
                *self.top,
                ("input", texts),
                *(("dimensions" if n == "dimension" else n, v) for n, v in self.inner),
            )
        else:
            inner = (("parameters", self._object(self.inner)),) if self.inner else ()
            fields = (*self.top, ("input", self._object((("texts", texts), *self.beside))), *inner)
        return self._object(fields).encode()

    def with_line(self, name: str, value: str | bytes) -> "Ask":
        return replace(
            self, lines=(*self.lines, (name.encode(), value if isinstance(value, bytes) else value.encode()))
        )

    def with_inner(self, name: str, value: str) -> "Ask":
        return replace(self, inner=(*(member for member in self.inner if member[0] != name), (name, value)))

    def with_text(self, change: Callable[[str], str]) -> "Ask":
        return replace(self, texts=(change(self.texts[0]), *self.texts[1:]))

    def _object(self, members: Members) -> str:
        return "{" + f",{self.blank}".join(f'"{name}":{self.blank}{value}' for name, value in members) + "}"

    def _list(self, values: tuple[str, ...]) -> str:
        return "[" + f",{self.blank}".join(values) + "]"


Change = Callable[[Ask, random.Random], Ask]

WORDS = "mode tier region model-version beta trace new flag x session locale precision".split()
SCALARS = [
    "true",
    "false",
    "null",
    "0",
    "-0",
    "1",
    "1.0",
    "1e0",
    "10E-1",
    '"1"',
    '""',
    '" "',
    '"true"',
    "{}",
    '{"a":{}}',
]
NUMBERS = """64.0 6.4e1 "64" 640e-1 64.00 null 512 1024 1024.0 1e3 "1024" 064 +64 0x40 65 -64""".split()
ODD_VALUES = ["1", "2", "1,2", "", "a b", "A", "a", "ä", "\u4e16", "1;q=0.5", '"1"', "1=2", "a  b"]


def _name(ask: Ask, chance: random.Random) -> str:
    return "X-" + "-".join(chance.sample(WORDS, 2)) + str(chance.randrange(5))


def _spelled(name: str, chance: random.Random) -> str:
    return "".join(chance.choice((letter.lower(), letter.upper())) for letter in name)


# What changes the question, or may, for all that anybody knows.
CHANGES: dict[str, Change] = {
    "an unknown header": lambda a, r: a.with_line(_name(a, r), r.choice(ODD_VALUES)),
    "an unknown header, twice": lambda a, r: a.with_line("X-New", "1").with_line("X-New", r.choice(ODD_VALUES)),
    "an unknown header, turned": lambda a, r: a.with_line("X-New", "2").with_line("x-new", "1"),
    "a header of the vendor's": lambda a, r: a.with_line(
        _spelled("X-DashScope-" + r.choice(WORDS), r), r.choice(["enable", "disable", "true", "1", ""])
    ),
    "inspection": lambda a, r: a.with_line("X-DashScope-DataInspection", r.choice(["enable", "disable", ""])),
    "a header almost without effect": lambda a, r: a.with_line(
        r.choice(
            "X-Forwarded X-Forwarded-User X-Forwarded-Email X-Forwarded-Access-Token X-Forwarded-Client-Cert "
            "X-DashScope-SDK X-DashScope-ClientId XX-Request-Id X-Request-Id2 Trace-Parent User-Agents X-Real-IPs "
            "X-DashScope-User Accept-Language Accept-Charset Origin Referer Range If-None-Match Prefer From "
            "X-HTTP-Method-Override X-Original-URL X-Rewrite-URL X-Api-Version OpenAI-Organization OpenAI-Beta "
            "OpenAI-Project Content-Language Content-Location X-Host X-Amz-Date X-Stainless".split()
        ),
        r.choice(["1", "zh", "bytes=0-1", "GET", "/other"]),
    ),
    "what is accepted": lambda a, r: a.with_line(
        "Accept",
        r.choice(
            [
                "application/x-protobuf",
                "application/json;version=2",
                "application/vnd.dashscope.v2+json, application/json;q=0.5",
                "text/html, */*;q=0.1",
                "application/json;q=0, text/plain",
                "text/plain, application/json;q=0.1",
                "application/json, application/x-ndjson",
                "",
            ]
        ),
    ),
    "what is accepted, in two lines": lambda a, r: a.with_line("Accept", "application/json").with_line(
        "Accept", "application/x-protobuf"
    ),
    "another cookie": lambda a, r: a.with_line(
        "Cookie", r.choice(["a=1", "a=2", "acw_tc2=1; acw_tc=1", "b", 'a="; acw_tc=1"'])
    ),
    "another credential": lambda a, r: replace(a, lines=bearer(f"sk-{r.randrange(9)}b")),
    "a credential beside": lambda a, r: a.with_line("X-DashScope-ApiKey", "sk-a"),
    "a workspace": lambda a, r: a.with_line("X-DashScope-WorkSpace", r.choice(["", "ws", "WS"])),
    "Connection takes the workspace away": lambda a, r: a.with_line("X-DashScope-WorkSpace", "w").with_line(
        "Connection", "x-dashscope-workspace"
    ),
    "Connection takes an unknown header away": lambda a, r: a.with_line("X-New", "1").with_line("Connection", "X-New"),
    "a query": lambda a, r: replace(
        a, query=r.choice(["?a=1", "?a=1&", "?A=1", "?a=%31", "??", "?x", "?a=1&a=2", "?a=2&a=1", "?model=other"])
    ),
    "the dimension": lambda a, r: a.with_inner("dimension", r.choice(NUMBERS)),
    "no dimension": lambda a, r: replace(a, inner=a.inner[1:]),
    "the kind of text": lambda a, r: a.with_inner("text_type", r.choice(['"document"', '"Query"', '"query "', "null"])),
    "an instruction": lambda a, r: a.with_inner("instruct", r.choice(['""', '"x"', '"x "', "null"])),
    "an unknown parameter": lambda a, r: a.with_inner(r.choice(WORDS), r.choice(SCALARS)),
    "an unknown parameter in a deep place": lambda a, r: a.with_inner(
        "deep", '{"a":{"b":{"c":' + r.choice(SCALARS) + "}}}"
    ),
    "an unknown list": lambda a, r: a.with_inner("list", r.choice(["[]", "[1]", '["a",2]', '{"a":[0]}'])),
    "an unknown field": lambda a, r: replace(a, top=(*a.top, (r.choice(WORDS), r.choice(SCALARS)))),
    "an unknown field beside the texts": lambda a, r: replace(a, beside=((r.choice(WORDS), r.choice(SCALARS)),)),
    "no parameters": lambda a, r: replace(a, inner=()),
    "another model": lambda a, r: replace(
        a, top=(("model", r.choice(['"text-embedding-v3"', '"TEXT-EMBEDDING-V4"'])),)
    ),
    "the model twice": lambda a, r: replace(a, top=(*a.top, ("model", '"text-embedding-v3"'))),
    "a parameter twice": lambda a, r: replace(a, inner=(*a.inner, ("dimension", r.choice(["512", "1024"])))),
    "a parameter twice, once escaped": lambda a, r: replace(a, inner=(*a.inner, ("\\u0064imension", "512"))),
    "the input twice": lambda a, r: replace(a, top=(("input", '{"texts":["x"]}'), *a.top)),
    "a stream": lambda a, r: replace(a, top=(*a.top, ("stream", r.choice(["true", "false", "null", "0"])))),
    "the format": lambda a, r: replace(
        a, top=(*a.top, ("encoding_format", r.choice(['"float"', '"base64"', "null", '"FLOAT"'])))
    ),
    "the other dialect": lambda a, r: replace(a, compatible=not a.compatible),
    "the text decomposed": lambda a, r: a.with_text(lambda t: t.replace("é", "e\u0301")),
    "the text folded": lambda a, r: a.with_text(lambda t: t.replace("Å", "\u212b").replace("fi", "ﬁ")),
    "the text with a blank": lambda a, r: a.with_text(
        lambda t: t[:-1] + r.choice([" ", "\u3000", "\\u00a0", "\\n"]) + '"'
    ),
    "a blank first": lambda a, r: a.with_text(lambda t: '"' + r.choice([" ", "\\t", "\u200b", "\ufeff"]) + t[1:]),
    "the text in another case": lambda a, r: a.with_text(lambda t: t.replace("Text", "text")),
    "the text with a NUL": lambda a, r: a.with_text(lambda t: t[:-1] + '\\u0000"'),
    "the text with half a character": lambda a, r: a.with_text(lambda t: t[:-1] + '\\ud800"'),
    "the text escaped twice": lambda a, r: a.with_text(lambda t: t.replace("é", "\\\\u00e9")),
    "a number for a text": lambda a, r: replace(a, texts=(a.texts[0], "1")),
    "another text before": lambda a, r: replace(a, texts=('"before"', *a.texts)),
    "a coding of the body": lambda a, r: a.with_line("Content-Encoding", r.choice(["gzip", "identity, gzip", "x"])),
    "a date header's neighbour": lambda a, r: a.with_line("Dates", "1"),
}
# What does not change the question, as the vendor's adapter documents.
SAME: dict[str, Change] = {
    "nothing": lambda a, r: a,
    "a header without effect": lambda a, r: a.with_line(
        _spelled(
            r.choice(
                "User-Agent traceparent tracestate baggage b3 X-B3-TraceId x-datadog-trace-id EagleEye-TraceId Via DNT "
                "X-Request-Id X-Correlation-Id X-Forwarded-For X-Forwarded-Proto X-Real-IP Forwarded Idempotency-Key "
                "X-Stainless-Retry-Count X-DashScope-SDK-Session-Id X-DashScope-Client sentry-trace Priority".split()
            ),
            r,
        ),
        r.choice(["1", "a, b", "for=x", "ä"]),
    ),
    "a coding for the answer": lambda a, r: a.with_line(
        "Accept-Encoding", r.choice(["gzip", "br", "gzip, deflate, br"])
    ),
    "JSON is accepted": lambda a, r: a.with_line(
        "Accept", r.choice(["application/json", "*/*", "application/json, text/plain, */*"])
    ),
    "affinity": lambda a, r: a.with_line("Cookie", f"acw_tc={r.randrange(99)}"),
    "a credential in other case": lambda a, r: replace(a, lines=tuple((_n(n, r), v) for n, v in a.lines)),
    "the charset": lambda a, r: replace(
        a,
        lines=(*(line for line in a.lines if line != JSON), (b"content-type", b"Application/JSON; charset=UTF-8")),
    ),
    "other lines first": lambda a, r: replace(a, lines=a.lines[::-1]),
    "blanks": lambda a, r: replace(a, blank=r.choice([" ", "\n", "\r\n\t "])),
    "other order": lambda a, r: replace(a, inner=a.inner[::-1], top=a.top[::-1]),
    "letters escaped": lambda a, r: a.with_text(lambda t: json.dumps(json.loads(t))),
    "Connection names what is not there": lambda a, r: a.with_line("Connection", "keep-alive, x-nobody"),
}


def _n(name: bytes, chance: random.Random) -> bytes:
    return _spelled(name.decode(), chance).encode()


def _names_identity_away(ask: Ask) -> bool:
    """Whether a ``Connection`` line names one that says who is asking: that is refused."""
    named = [value.lower() for name, value in ask.lines if name.lower() == b"connection"]
    return any(identity in value for value in named for identity in (b"authorization", b"x-dashscope-"))


async def test_s2_keyed_is_forwarded() -> None:
    """
    Fill with the change and ask without it, and the reverse, against an upstream that tells all it got.

    Every answer, from the cache or not, must be what the upstream would have told whoever asks.
    """
    chance = random.Random(2)
    names = [(name,) for name in CHANGES] + [(name,) for name in SAME]
    names += [tuple(chance.sample([*CHANGES, *SAME], chance.choice((1, 1, 2, 3)))) for _ in range(260)]
    changes = CHANGES | SAME
    hits: Counter[str] = Counter()
    async with RawUpstream(telling()) as upstream, ProxyProcess(dashscope_url=upstream.url) as proxy:
        client = await RawClient.connect(proxy.http_port)
        for (number, chosen), turned in itertools.product(enumerate(names), (False, True)):
            plain = Ask(
                (json.dumps(f"Text {number} {turned}: é Å fin", ensure_ascii=False),), compatible=number % 3 == 0
            )
            changed = plain
            for name in chosen:
                changed = changes[name](changed, chance)
            for ask in (plain, changed)[:: -1 if turned else 1]:
                response = await client.request("POST", ask.target, ask.lines, ask.body)
                if _names_identity_away(ask):
                    assert (chosen, response.status) == (chosen, 400)
                else:
                    assert (chosen, heard(response)) == (chosen, told(ask.target, ask.lines, ask.body))
                if (response.header("Connection") or b"") == b"close":
                    await client.close()
                    client = await RawClient.connect(proxy.http_port)
            if all(name in SAME for name in chosen):
                assert (chosen, state(response)) == (chosen, "hit")
            hits[state(response)] += 1
        await client.close()
    assert hits["hit"] >= 60
    assert hits["miss"] >= 300
    assert hits["bypass"] >= 40
