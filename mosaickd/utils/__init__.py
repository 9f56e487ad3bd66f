"""Small tools that any room may use: files, locks, durations, and what this machine is."""
