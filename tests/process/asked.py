"""The events of the worker program that the tests of this folder start (see UNIT in conftest)."""

from canvasbus import Event, event


@event("crash.asked")
class Asked(Event):
    number: int
    deadly: bool = False


@event("crash.answered")
class Answered(Event):
    number: int
    pid: int
