"""What engines know in common of models and losses of Keras; no framework's tensors in it."""
