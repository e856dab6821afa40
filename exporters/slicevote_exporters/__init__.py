"""Turns a pretrained backbone into one self-describing ONNX file. Torch is imported only when something is exported."""
