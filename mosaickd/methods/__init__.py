"""How methods play: turns of one loop. `base` states the contract; one file a method."""
