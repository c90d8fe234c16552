"""Training: loss, optimizer, a pure train step, and the loop that never loses work around them."""
