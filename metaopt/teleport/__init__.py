"""Moving along a symmetry: engines, guard, search, optimizer state, and what was done."""
