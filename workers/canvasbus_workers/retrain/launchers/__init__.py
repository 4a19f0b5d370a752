"""Who trains: one module for each kind of launcher, and what all of them have in common in `protocol`."""
