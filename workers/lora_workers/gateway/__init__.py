"""The gateway: the registry over HTTP."""
