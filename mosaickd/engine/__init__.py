"""The loop and what it needs: players, evaluation, checkpoints, trackers, progress."""
