"""One module per family of backbones, to build the network and load its weights. All but `lite0` import PyTorch."""
