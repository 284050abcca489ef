"""The command line of dlprobe."""
