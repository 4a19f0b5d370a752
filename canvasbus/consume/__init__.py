"""From an entry on a stream to a handler and back to an acknowledgement.

what an author says
  handlers      workers and what they listen to     (context, state, timers, middleware, lifespan, breaker, instances)
the way of an entry
  subscription  reads entries        → Delivery     (delivery; recovery: what comes otherwise; inbox: what was handled before)
  dispatch      runs the handler     → Outcome      (invoke, batches, watchdog; quarantine, breaking: who has to wait)
  policy        decides, purely      → Verdict      (outcomes carries it out)
  settle        commits the verdict  → the server   (commit, changes, fence; aside: what is refused; holding: in groups made anew)
the life of a worker
  runner        one worker in this process          (joining, leaving)
  liveness      who is alive                        (accepting: which versions of events it takes)
  sweep         watches over the others             (taking, parking: what nobody owns; membership: groups that are lost)
  pausing       stops reading and goes on
what a namespace needs
  maintain      fires timers, trims (retention), removes groups of killed instances
what the others use
  backoff, blame (which line of a user it was), complaints, declaration (what a group says of itself), lease
"""
