"""A writer that dies at every instant: Python tells an audit hook of each file that is opened, made or renamed, before it is.

    for path in deaths(prepare, write, ("os.rename",), how="kill"):
        ...                                             # what stands on the disk now?

It forks, so it belongs into a process without threads.
"""

import itertools
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any


def deaths(
    prepare: Callable[[int], Any], write: Callable[[Any], None], events: tuple[str, ...], how: str
) -> Iterator[Any]:
    """What `prepare` made for each moment, after a child has died there in `write`; until one lives to its end.

    A moment is an event whose name begins with one of `events`; `how` is "kill", or "interrupt" for Ctrl-C.
    """
    for moment in itertools.count(1):
        place = prepare(moment)
        child = os.fork()
        if child == 0:
            try:
                clock = _Clock(moment, events, how)
                write(place)
                os._exit(0 if clock.left > 0 else 1)
            finally:
                os._exit(1)
        if os.waitpid(child, 0)[1] == 0:
            return
        yield place


class _Clock:
    def __init__(self, moment: int, events: tuple[str, ...], how: str) -> None:
        self.left, self.events, self.how = moment, events, how
        sys.addaudithook(self.tick)

    def tick(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith(self.events):
            self.left -= 1
            if self.left == 0 and self.how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            elif self.left == 0:
                raise KeyboardInterrupt
