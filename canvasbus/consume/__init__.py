"""From an entry on a stream to a handler and back to an acknowledgement.

subscription  reads entries          → Delivery          (delivery)
dispatch      runs the handler       → Outcome           (invoke, batches)
policy        decides, purely        → Verdict           (outcomes carries it out)
settle        commits the verdict    → the server        (commit)
liveness      who is alive, and which versions of events it takes (accepting)
runner        one worker in this process, from joining to leaving
"""
