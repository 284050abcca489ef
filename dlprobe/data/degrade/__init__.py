"""Degradations: what happens to an image between its making and its examination, named, seeded and composable."""
