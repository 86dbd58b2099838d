"""THE PROTOCOL: what two processes must agree on. No IO in it."""
