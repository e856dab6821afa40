"""One module a family of backbones: builds the network and loads its weights. These modules import torch."""
