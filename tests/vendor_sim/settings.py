"""What can be chosen about a simulator. Immutable; `VendorSim.configure` replaces them while it runs."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class SimSettings:
    """
    The simulator's options; the defaults are a healthy vendor that answers at once.

    With ``api_keys`` None every key is accepted except the ``refused_keys``. ``capacity`` is how many calls may run at
    once, ``rpm`` how many may start per minute and model. ``honours_base64`` False answers numbers to base64 requests.
    ``max_texts`` takes the place of all models' own limits of texts in one request.
    """

    api_keys: frozenset[str] | None = None
    refused_keys: frozenset[str] = frozenset({"sk-wrong"})
    latency_ms: float = 0.0
    jitter_ms: float = 0.0
    frame_delay_ms: float = 0.0
    capacity: int | None = None
    rpm: int | None = None
    max_texts: int | None = None
    seed: int = 0
    honours_base64: bool = False
    shuffles_embeddings: bool = False
    affinity_cookie: Literal["first", "always", "never"] = "first"
    # A simulator must keep up with load tests; the vendor's own level is unknown.
    gzip_level: int = 1
    records: bool = True
    # What the polls of a new task see, one after the other; the last stays.
    task_states: tuple[str, ...] = ("PENDING", "RUNNING", "SUCCEEDED")
    generation_pieces: tuple[str, ...] = ("你", "好")
    chat_pieces: tuple[str, ...] = ("你好",)
