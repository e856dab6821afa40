"""Turn a pretrained backbone into one self-describing ONNX file. PyTorch is imported only by exports that need it."""
