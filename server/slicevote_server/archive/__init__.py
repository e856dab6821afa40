"""The archive: one interface, and the engines behind it."""
