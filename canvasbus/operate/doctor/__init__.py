"""The doctor: is this server, and this namespace on it, in a state in which the bus keeps its promises?

    ask        `server`, `namespace`, `rights`: questions to the server, answers as plain facts; what it refuses to tell
               is a fact of its own
    judge      `judge_server`, `judge_namespace`: facts to findings, without I/O
    finding    what was found, how bad it is, what to do about it

Nothing is changed, nobody is woken, and the work is bounded: lists are read in pages up to a limit and then sampled,
which the finding says. What could not be found out is a note that says so, never "ok".
"""
