"""Pytrees, checks of what users hand in, numerics: what all rooms stand on."""
