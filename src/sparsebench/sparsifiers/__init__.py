"""How a network becomes sparse while it trains: the protocol, the two engines, and the named methods built from them."""
