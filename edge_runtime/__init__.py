"""The device: an agent that idles, a participant that takes part in one round, an instance that trains."""
