"""What is fast, measured against what: one command, one table."""
