"""What workers have in common when they talk to services that are not the bus: one of each, whichever worker asks.

    client    a request over HTTP within a deadline (needs httpx2)
    guard     which addresses may be called by a URL that somebody else may have chosen (pure)
    dial      names looked up, addresses judged, connections made
    answer    Retry-After, and what of an answer is told, without the secrets that it repeats (pure)
    secret    tokens and URLs from files and the environment, which show themselves as ***
    library   httpx2 is an extra: whoever needs it says so at the start

What a status means is each worker's own: for a launcher a 503 has begun nothing, for a feature row it is not the row's
fault. Trainers and feature servers live on internal networks, and their addresses are the operator's own: no guard. A URL
to which alerts are posted may come from somebody who only knows a chat.
"""
