"""Where weights come from and how they get into a network: files, the hub's cache, seeded random tensors."""
