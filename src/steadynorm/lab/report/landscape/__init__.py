"""The report of the loss around the weights."""
