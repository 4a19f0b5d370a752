"""What lies on the wire: the envelope, its bytes, and the names of keys."""
