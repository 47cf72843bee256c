"""Groups that leave a network's function unchanged: their elements, actions, and hidden units.

``discovery`` finds the symmetries of an ``nn.Module``.
"""
