"""The revisions, each in a file of its own, in one line without branches."""
