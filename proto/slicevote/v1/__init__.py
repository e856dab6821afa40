"""The contract: messages and services of slicevote.v1, generated from the .proto files beside this module."""
