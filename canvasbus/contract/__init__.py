"""What an event is: the base class, the registry, the rules a declaration must keep."""
