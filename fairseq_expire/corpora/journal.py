"""How far the making of data has come, beside the data, so that a run that was killed can be gone on with."""

import json
import time
from pathlib import Path
from typing import Any

from fairseq_expire.files import write_atomically

FILE_NAME = ".journal.json"

# Seconds of work that a kill can cost.
SAVE_SECONDS = 5.0


class Journal:
    """The state of one run in a folder: a dict of what JSON can hold, which belongs to one `plan` of what is to be made.

    Args:
        folder: where the data is made.
        plan: what it is made of and how; the state of another plan is not used.
        save_seconds: at most how often `due` says that it is time to save.
    """

    def __init__(self, folder: Path, *, plan: str, save_seconds: float = SAVE_SECONDS):
        self._path = folder / FILE_NAME
        self._plan = plan
        self._save_seconds = save_seconds
        self._last = time.monotonic()
        self.state: dict[str, Any] | None = None
        try:
            content = json.loads(self._path.read_text(encoding="utf-8"))
            if content["plan"] == plan:
                self.state = content["state"]
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            pass

    def due(self) -> bool:
        """Whether it is time to save."""
        return time.monotonic() - self._last >= self._save_seconds

    def save(self, state: dict[str, Any]) -> None:
        """Replace the state, all or nothing."""
        write_atomically(self._path, json.dumps({"plan": self._plan, "state": state}))
        self.state = state
        self._last = time.monotonic()
