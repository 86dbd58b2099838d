"""The `fedless` command: the composition root above all rooms."""
