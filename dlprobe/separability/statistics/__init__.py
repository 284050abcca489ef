"""The statistics themselves: arrays in, numbers out."""
