"""Looking after caches."""
