"""The tests, from pure functions (`unit/`) to killed processes (`chaos/`)."""
