"""What the vendor keeps between calls: batch tasks with their states, and the facts about uploaded files."""

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from tests.vendor_sim.errors import refuse


@dataclass(slots=True)
class Task:
    """One submitted job; every poll moves it to its next state, the last state stays."""

    task_id: str
    model: str
    request_id: str
    states: tuple[str, ...]
    polls: int = 0
    is_canceled: bool = False
    submitted: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def state(self) -> str:
        """What the last poll saw; before the first one, a task waits."""
        if self.is_canceled:
            return "CANCELED"
        return self.states[min(self.polls, len(self.states)) - 1] if self.polls else "PENDING"

    def time(self, after_ms: int) -> str:
        """A moment of the task's life as the vendor spells it."""
        moment = self.submitted + timedelta(milliseconds=after_ms)
        return moment.strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]


class TaskStore:
    """The tasks by id."""

    def __init__(self) -> None:
        self._tasks: dict[str, Task] = {}

    def clear(self) -> None:
        """Forget all tasks; their ids become unknown."""
        self._tasks.clear()

    def add(self, states: Sequence[str], *, task_id: str | None = None, model: str = "text-embedding-async-v2") -> Task:
        """Submit a task; tests may choose its id."""
        task = Task(task_id or str(uuid.uuid4()), model, str(uuid.uuid4()), tuple(states))
        self._tasks[task.task_id] = task
        return task

    def poll(self, task_id: str) -> Task | None:
        """The task, one state further; None when the id is unknown."""
        task = self._tasks.get(task_id)
        if task:
            task.polls += 1
        return task

    def cancel(self, task_id: str) -> None:
        """Cancel a task that still waits; else refuse."""
        task = self._tasks.get(task_id)
        if task is None or task.state != "PENDING":
            raise refuse("unsupported_operation")
        task.is_canceled = True

    def newest_first(self) -> list[Task]:
        """All tasks."""
        return list(reversed(self._tasks.values()))


@dataclass(frozen=True, slots=True)
class StoredFile:
    """What is kept of an upload; the bytes are not."""

    file_id: str
    name: str
    size: int
    sha256: str
    purpose: str
    created: int


class FileStore:
    """The files by id."""

    def __init__(self) -> None:
        self._files: dict[str, StoredFile] = {}

    def clear(self) -> None:
        """Forget all files."""
        self._files.clear()

    def add(self, name: str, size: int, sha256: str, purpose: str) -> StoredFile:
        """Note an upload."""
        file = StoredFile(f"file-{uuid.uuid4().hex}", name, size, sha256, purpose, int(time.time()))
        self._files[file.file_id] = file
        return file

    def get(self, file_id: str) -> StoredFile:
        """The file; refuses when there is none."""
        if file_id not in self._files:
            raise refuse("not_found")
        return self._files[file_id]

    def remove(self, file_id: str) -> None:
        """Delete the file; refuses when there is none."""
        self.get(file_id)
        del self._files[file_id]

    def all(self) -> list[StoredFile]:
        """All files, oldest first."""
        return list(self._files.values())
