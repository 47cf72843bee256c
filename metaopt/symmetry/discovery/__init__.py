"""The symmetries of an ``nn.Module``: traced, followed from layer to layer, put to the test."""
