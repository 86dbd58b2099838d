"""The called side: one short entry file for each platform, and `function`, which they all call."""
