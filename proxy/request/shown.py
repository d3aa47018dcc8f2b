"""
Which of the upstream's answers a client is shown as it came: the one rule for all requests that are not quite its own.

A request that goes up for a client may hold fewer items than it asked for, others' beside them, or one upstream's limit
of them. The answer to such a request is raw material for rows and never an answer to anybody, with one exception: an
error that is true for everybody.
"""

from proxy.core.answer import Answer
from proxy.core.coding import decoded
from proxy.core.nobody import speaks_of_nobody
from proxy.core.plan import NotStorable
from proxy.request.ask import Job, Landing

_MAX_BYTES = 1 << 20


async def may_be_shown(job: Job, landing: Landing) -> Answer | None:
    """
    The upstream's answer in *landing*, which brought no rows, if *job*'s client may have it; otherwise it is let go of.

    It may if it was given to its own request, item for item; or if it is an error that speaks of nobody's items.
    """
    if job.is_answered_by(landing):
        return landing.answer
    if job.plan.plain is not None:  # nobody knows what is said of more than the client asked for
        landing.close()
        return None
    answer = (await landing.read_whole()).answer
    if answer is None or not isinstance(answer.body, bytes):
        return None
    codings = tuple(value for name, value in answer.headers if name.lower() == b"content-encoding")
    try:
        text = decoded(answer.body, codings, _MAX_BYTES)
    except NotStorable:
        return None
    return answer if speaks_of_nobody(answer.status, text, len(landing.asked)) else None
