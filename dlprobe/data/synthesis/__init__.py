"""Offline data: families of real, auto-encoded, spliced and regenerated images."""
