"""The rules for operations: what each demands of the coordinates of its inputs and outputs."""
