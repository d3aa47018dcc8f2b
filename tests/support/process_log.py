"""The output of a child process: read as it comes, so that the child never waits for us. Used by `proxy_process`."""

import json
import threading
import time
from typing import IO, Any

Record = dict[str, Any]


class ProcessLog:
    """Reads *stream* in a thread until its end. Lines that are JSON objects become records; everything is kept raw."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._raw: list[bytes] = []
        self._records: list[Record] = []
        self._changed = threading.Condition()
        self._has_ended = False
        self._thread = threading.Thread(target=self._read, name="process-log", daemon=True)
        self._thread.start()

    @property
    def raw(self) -> bytes:
        """Every byte so far, to search for canaries."""
        with self._changed:
            return b"".join(self._raw)

    @property
    def records(self) -> list[Record]:
        """The JSON lines so far."""
        with self._changed:
            return list(self._records)

    def wait_record(self, fields: Record, timeout: float, after: int = 0) -> Record:
        """
        The first record from number *after* on which has all these *fields*; it may have come already.

        Raises LookupError, with the whole log, when there is none in time or can be none any more.
        """
        deadline = time.monotonic() + timeout
        with self._changed:
            while True:
                for record in self._records[after:]:
                    if fields.items() <= record.items():
                        return record
                after = max(after, len(self._records))
                left_s = deadline - time.monotonic()
                if self._has_ended or left_s <= 0:
                    break
                self._changed.wait(left_s)
            why = "the output ended" if self._has_ended else f"not within {timeout} s"
        raise LookupError(f"no log record with {fields}: {why}; the log:\n{self.raw.decode(errors='replace')}")

    def close(self) -> None:
        """Wait for the end of the output, which comes when the last process that holds it has gone."""
        self._thread.join(5.0)
        if not self._thread.is_alive():  # else somebody escaped; a stream that is being read must not be closed
            self._stream.close()

    def _read(self) -> None:
        for line in self._stream:
            record = _parsed(line)
            with self._changed:
                self._raw.append(line)
                if record is not None:
                    self._records.append(record)
                self._changed.notify_all()
        with self._changed:
            self._has_ended = True
            self._changed.notify_all()


def _parsed(line: bytes) -> Record | None:
    try:
        value = json.loads(line)
    except ValueError:  # not JSON, or not UTF-8
        return None
    return value if isinstance(value, dict) else None
