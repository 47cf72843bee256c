"""What leaves a network's function as it is: groups, elements, actions, hidden units.

``discovery`` finds the symmetries of an ``nn.Module``.
"""
