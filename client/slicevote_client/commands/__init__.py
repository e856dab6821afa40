"""The commands of `slicevote`, one module each, and what they share."""
