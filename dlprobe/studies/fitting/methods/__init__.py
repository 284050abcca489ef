"""What can be fitted on a pool: grids of heads, and the baselines beside them."""
