"""Events of a small studio, for the tests of the test kit."""

from canvasbus import Event, event


@event("sketch.drawn", key="title")
class SketchDrawn(Event):
    title: str = "untitled"
    number: int = 0


@event("sketch.inked")
class SketchInked(Event):
    title: str = "untitled"
    number: int = 0


@event("sketch.sold")
class SketchSold(Event):
    title: str = "untitled"
