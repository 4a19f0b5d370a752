"""What people ask a running bus: topics, groups and their lag, dead letters, the events themselves; and which workers
are installed.

Questions to the server are Operations: generators of packets with typed, frozen answers, driven by a `BlockingLink` on
the command line and by trio in a process that runs the bus.
"""
