"""Adapted backbones, scored as probes on frozen ones are."""
