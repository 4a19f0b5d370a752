"""What an event is: the base class, the registry, the rules of a declaration; versions, their schemas, who reads whom."""
