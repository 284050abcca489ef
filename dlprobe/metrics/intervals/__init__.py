"""How sure a score is over sources, and whether two scores differ: intervals and paired tests, on shared resamples."""
