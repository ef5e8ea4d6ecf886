"""Two losses over a plane, each with a deep valley, and the way of every method through them."""
