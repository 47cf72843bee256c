"""Finds the symmetries of an ``nn.Module``: traces it, follows its layers, tests what it found."""
