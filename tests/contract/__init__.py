"""One suite for everything that claims the same behaviour."""
