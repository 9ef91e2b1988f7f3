"""What the layer costs, beside Keras's and each framework's own; see README.md."""
