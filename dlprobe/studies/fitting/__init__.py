"""How a fit proceeds: pool caches, assign sources, fit the grid, choose on validation, score on test."""
