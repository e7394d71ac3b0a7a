"""Analysis of losses: H = G + R by layer, quadratic models, landscapes, finite differences."""
