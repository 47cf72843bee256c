"""What teleports can do in theory: bounds, Newton's direction, test functions."""
