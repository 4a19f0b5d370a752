"""The way to the server: bytes out, replies in. Everything above is the same on fakeredis, Redis and Valkey."""
