"""What uses matrices and algorithms together: H = G + R by layer, quadratic models, landscapes."""
