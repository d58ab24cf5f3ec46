"""The thread in which a route's worker runs."""

from __future__ import annotations

import threading
import traceback
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from maildirqmtp.daemon.worker import Worker
    from maildirqmtp.transport.wakeup import Wakeup


class Runner:
    """A route's worker in its thread; `done` once that has ended, `crash` the traceback if any."""

    def __init__(self, worker: Worker, wake: Wakeup) -> None:
        self.worker = worker
        self.stopping = False
        self.done = False
        self.reaped = False
        self.crash = ""
        self._wake = wake
        self.thread = threading.Thread(target=self._work, daemon=True)

    def _work(self) -> None:
        try:
            self.worker.run()
        except BaseException:
            # A bug. The other routes are stopped; a service manager may restart the process.
            self.crash = traceback.format_exc()
        finally:
            self.done = True
            self._wake.set()

    def stop(self, at_once: bool = False) -> None:
        if at_once or not self.stopping:
            self.stopping = True
            self.worker.stop(at_once)
