"""The gRPC services over the engine, and the translation between messages and the engine's objects."""
