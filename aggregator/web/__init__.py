"""What can be seen of the service without changing it: /healthz, /metrics and a dashboard.

`server` listens, `views` reads the store, `metrics` and `pages` turn what it read into text. Nothing here writes.
"""
