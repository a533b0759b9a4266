"""Engine 1, for methods that keep a mask: score x allocation x structure x schedule x policy."""
