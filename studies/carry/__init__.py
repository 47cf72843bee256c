"""How far the default rule carries: wider, longer, other data, millions of parameters."""
