"""What workers have in common when they talk to services that are not the bus: one of each, whichever worker asks.

    client    a request over HTTP within a deadline, to an address of the operator's own (needs httpx2)
    answer    Retry-After, and what of an answer is told, without the secrets that it repeats
    secret    tokens and URLs from files and the environment, which show themselves as ***

What a status means is each worker's own: for a launcher a 503 has begun nothing, for a feature row it is not the row's
fault. URLs that somebody else may have chosen go through the guard of `alerts.destinations`, and not through `client`.
"""
