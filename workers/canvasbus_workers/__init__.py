"""The workers that come with canvasbus. Each folder is one worker and one consumer group:

    handlers.py   what it listens to and what follows from it; reads like a list
    (pure parts)  the domain's rules: no trio, no Redis, no bus
    edge.py       the one outside thing it touches
    __init__.py   exports `worker`, which the entry-point group `canvasbus.workers` names

Workers import the doors (canvasbus, canvasbus.worker, canvasbus.events, canvasbus.errors) and the modules beside this
one, never each other: they talk through events. `artifacts` and `tagging` lie here because a trainer and a server must
agree on them to the last bit: what a file is called, and what a model says about an image. `patterns` is how all settings
mean several names. `monitoring` is a library of
its own, which knows no bus: the pure part of the drift worker. `outside` is what several edges need: HTTP, and secrets.
"""
