"""A config: its schema, its validation, what it may build, and which run it is."""
