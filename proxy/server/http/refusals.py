"""Refusals of bytes that never became a request: by aiohttp's parser, or by the connection in its form."""

from aiohttp import web
from aiohttp.http_exceptions import BadHttpMessage, LineTooLong
from aiohttp.web_protocol import _ErrInfo

from proxy.core.answer import Answer
from proxy.core.errors import ErrorCode, no_room
from proxy.server.http.writing import write_answer

HTTP_2 = b"PRI * HTTP/2.0\r\n\r\n"
"""How HTTP/2 begins where the client did not ask first (RFC 9113 §3.4); six bytes more follow."""

_WORDS = {
    400: (ErrorCode.BAD_REQUEST, "this is not a valid HTTP request"),
    431: (ErrorCode.HEADER_TOO_LARGE, "the header is too large"),
    503: (ErrorCode.TOO_MUCH_HELD, no_room().message),
    505: (ErrorCode.VERSION_NOT_SUPPORTED, "HTTP/1.1 is spoken here"),
}

_TOO_MANY = "Too many headers"
"""How aiohttp's parser, which has no class for it, complains of more lines than are allowed."""


def refusal(status: int, why: str) -> _ErrInfo:
    """An error as aiohttp's parser would report it, had it found the fault."""
    return _ErrInfo(status, BadHttpMessage(why), why)


def words_for(status: int, error: BaseException | None) -> tuple[int, ErrorCode, str]:
    """The status that is answered for *error*, with its code and its text."""
    if isinstance(error, LineTooLong) or _TOO_MANY in str(error):
        status = 431
    return status, *_WORDS.get(status, _WORDS[400])


class ParserRefusal(web.StreamResponse):
    """Written when aiohttp asks for it, as the parser's errors bypass our handler."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self._answer = answer

    @property
    def keep_alive(self) -> bool:
        """Never."""
        return False

    async def prepare(self, request: web.BaseRequest) -> None:
        """Write head and body."""
        await write_answer(request, self._answer, (), keep_alive=False)

    async def write_eof(self, data: bytes = b"") -> None:
        """Nothing is left to do."""
