"""The pieces on a real server, driven in this process."""
